"""Tests of packed rows: the same numbers as padded rows, without computing padding or a shared prefix twice."""

from __future__ import annotations

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lwr.model import batch_layout
from lwr.model.layer_hooks import find_layer_stack
from lwr.model.packing import ATTENTION_NAME, MIN_FILL, Packing, enable_packing
from lwr.model.reranker import LayerwiseReranker

FIRST_POSITION = {"qwen3_5_text": None, "gemma2": None, "lfm2": None, "xlm-roberta": 1}
"""The first position if it is not 0. None: not packable, because tokens mix by other means than SDPA attention."""
PACKABLE = [name for name in tiny.ARCHITECTURES if FIRST_POSITION.get(name, 0) is not None]
DECODERS, ENCODERS = ([name for name in PACKABLE if name in kind] for kind in (tiny.DECODERS, tiny.ENCODERS))
WINDOWS = {
    "mistral": {"sliding_window": 4},
    "gemma3_text": {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "modernbert": {"local_attention": 6, "layer_types": ["sliding_attention", "full_attention"] * 2},
}

packable = pytest.mark.parametrize("architecture", PACKABLE)


def rerankers(architecture: str, **options) -> tuple[LayerwiseReranker, LayerwiseReranker]:
    """Make two rerankers with the same weights, one that packs and one that pads."""
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        model = LayerwiseReranker(tiny.backbone(architecture), None, 1, **options)
        for head in model.heads:
            torch.nn.init.normal_(head, std=0.2)
        models.append(model.eval())
    packing, padding = models
    assert packing.first_position is not None
    padding.first_position = None
    padding.backbone.set_attn_implementation("sdpa")
    return packing, padding


def batch(lengths: tuple[int, ...], shared: int = 0, side: str = "right") -> dict[str, Tensor]:
    """Make rows of these lengths whose first `shared` tokens are the same, padded on one side."""
    longest = max(lengths)
    ids = torch.randint(3, tiny.VOCABULARY, (len(lengths), longest))
    ids[:, :shared] = ids[:1, :shared]
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    if side == "left":
        shift = longest - torch.tensor(lengths)
        columns = (torch.arange(longest) - shift[:, None]) % longest
        ids, mask = ids.gather(1, columns), mask.flip(1)
    return {"input_ids": ids, "attention_mask": mask}


LENGTHS = (9, 30, 8, 9, 17, 2, 29, 16)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-4)


# --- which backbones -----------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_enable_packing_of_every_architecture(architecture):
    backbone = tiny.backbone(architecture)
    usual = backbone.config._attn_implementation
    first = enable_packing(backbone, find_layer_stack(backbone))
    assert first == FIRST_POSITION.get(architecture, 0)
    assert backbone.config._attn_implementation == (usual if first is None else ATTENTION_NAME)


@packable
@torch.no_grad()
def test_packable_backbone_still_reads_padded_batches(architecture):
    features = batch(LENGTHS)
    plain, ready = tiny.backbone(architecture), tiny.backbone(architecture)
    enable_packing(ready, find_layer_stack(ready))
    real = features["attention_mask"].bool()
    states = [backbone(**features).last_hidden_state[real] for backbone in (ready, plain)]
    close(*states)


def test_eager_attention_is_not_replaced():
    backbone = tiny.backbone("llama")
    backbone.set_attn_implementation("eager")
    assert enable_packing(backbone, find_layer_stack(backbone)) is None
    assert backbone.config._attn_implementation == "eager"


# --- the same numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "pooling", "side"),
    [
        *((name, pooling, "right") for name in ENCODERS for pooling in ("mean", "first", "last")),
        *(
            (name, pooling, side)
            for name in DECODERS
            for pooling in ("mean", "last")
            for side in ("left", "right")
        ),
    ],
)
@torch.no_grad()
def test_packed_rows_score_as_padded_rows(architecture, pooling, side):
    packing, padding = rerankers(architecture, pooling=pooling)
    features = batch(LENGTHS, side=side)
    scores = torch.stack(packing.encode(features))
    close(scores, torch.stack(padding.encode(features)))
    assert scores.std() > 0.01, "scores must differ for this test to mean anything"


@packable
def test_packed_rows_have_the_gradients_of_padded_rows(architecture):
    packing, padding = rerankers(architecture)
    features = batch(LENGTHS)
    for model in (packing, padding):
        sum(scores.square().sum() for scores in model.encode(features)).backward()  # without dropout
    expected = dict(padding.named_parameters())
    for name, p in packing.named_parameters():
        if p.grad is not None or expected[name].grad is not None:
            torch.testing.assert_close(p.grad, expected[name].grad, atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("architecture", WINDOWS)
@torch.no_grad()
def test_sliding_windows_of_packed_rows(architecture, monkeypatch):
    monkeypatch.setitem(
        tiny.ARCHITECTURES, architecture, tiny.ARCHITECTURES[architecture] | WINDOWS[architecture]
    )
    packing, padding = rerankers(architecture)
    for shared in (0, 7):
        features = batch((20, 19, 20, 12), shared)
        close(torch.stack(packing.encode(features)), torch.stack(padding.encode(features)))
    monkeypatch.undo()
    without, _ = rerankers(architecture)
    assert not torch.allclose(without.encode(features)[-1], packing.encode(features)[-1], atol=1e-3), (
        "the window must matter for this test to mean anything"
    )


@pytest.mark.parametrize("architecture", ["llama", "bert"])
@torch.no_grad()
def test_given_positions_are_used(architecture):
    packing, padding = rerankers(architecture)
    features = batch((9, 7))
    features["position_ids"] = torch.arange(9).flip(0).expand(2, -1)
    if architecture == "bert":  # padded encoders count positions themselves
        assert not torch.allclose(packing.encode(features)[-1], padding.encode(features)[-1], atol=1e-3)
    else:
        close(torch.stack(packing.encode(features)), torch.stack(padding.encode(features)))


@torch.no_grad()
def test_token_types_are_packed():
    packing, padding = rerankers("bert")
    features = batch(LENGTHS)
    plain = packing.encode(features)[-1]
    features["token_type_ids"] = (torch.arange(30) > 4).long().expand(len(LENGTHS), -1)
    close(torch.stack(packing.encode(features)), torch.stack(padding.encode(features)))
    assert not torch.allclose(packing.encode(features)[-1], plain, atol=1e-3)


# --- shared prefixes -----------------------------------------------------------------------------------


def tokens_computed(model: LayerwiseReranker, features: dict[str, Tensor]) -> int:
    """Return the length of the packed sequence that the first block computes."""
    lengths = []
    hook = model.stack.blocks[0].register_forward_hook(lambda _, __, output: lengths.append(output.shape[1]))
    model.encode(features)
    hook.remove()
    return lengths[0]


@pytest.mark.parametrize("architecture", DECODERS)
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_shared_prefix_is_computed_once(architecture, side):
    packing, padding = rerankers(architecture)
    features = batch((30, 29, 16, 15, 9), shared=8, side=side)
    close(torch.stack(packing.encode(features)), torch.stack(padding.encode(features)))
    rectangles = (22 + 22) + 8 + 7 + 1  # the second row is nearly as long as the first
    assert tokens_computed(packing, features) == 8 + rectangles


@torch.no_grad()
def test_equal_rows_keep_a_token_each():
    packing, padding = rerankers("llama")
    features = {name: tensor.expand(5, -1) for name, tensor in batch((7,)).items()}
    assert tokens_computed(packing, features) == 6 + 5
    close(torch.stack(packing.encode(features)), torch.stack(padding.encode(features)))


@torch.no_grad()
def test_prefix_that_saves_too_little_is_not_shared():
    packing, _ = rerankers("llama")
    assert tokens_computed(packing, batch((100, 99), shared=15)) == 200
    assert tokens_computed(packing, batch((100, 99), shared=30)) == 170
    assert batch_layout.MIN_SAVED_SHARE * 199 > 15


@pytest.mark.parametrize(("architecture", "pooling"), [("bert", None), ("llama", "mean")])
@torch.no_grad()
def test_prefix_is_not_shared_by_encoders_or_mean_pooling(architecture, pooling):
    packing, padding = rerankers(architecture, pooling=pooling)
    features = batch((30, 30, 30), shared=20)
    assert tokens_computed(packing, features) == 90
    close(torch.stack(packing.encode(features)), torch.stack(padding.encode(features)))


def test_prefix_is_not_shared_while_training():
    packing, _ = rerankers("llama")
    assert tokens_computed(packing, batch((30, 30, 30), shared=20)) == 90


@torch.no_grad()
def test_cascade_keeps_the_shared_prefix():
    packing, padding = rerankers("llama")
    features = batch((30, 29, 16, 15, 9, 8), shared=7)
    scores = packing.cascade(features, {1: 4, 3: 2}, 4)
    expected = padding.cascade(features, {1: 4, 3: 2}, 4)
    assert torch.equal(scores.isnan(), expected.isnan())
    close(scores.nan_to_num(), expected.nan_to_num())
    assert (~scores.isnan()).sum(dim=1).tolist() == [6, 4, 2]


@packable
@pytest.mark.parametrize("shared", [0, 7])
@pytest.mark.parametrize("at_once", [1, 20, 64])
@torch.no_grad()
def test_cascade_in_chunks_equals_cascade_at_once(architecture, shared, at_once):
    packing, padding = rerankers(architecture)
    features = batch((30, 29, 16, 15, 9, 8), shared)
    for model in (packing, padding):
        complete = model.cascade(features, {1: 4, 3: 2}, 4)
        scores = model.cascade(features, {1: 4, 3: 2}, 4, at_once)
        assert torch.equal(scores.isnan(), complete.isnan())
        close(scores.nan_to_num(), complete.nan_to_num())


# --- Packing ------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(2, 40), min_size=1, max_size=12),
    st.integers(0, 1),
    st.sampled_from(["left", "right"]),
)
@settings(deadline=None)
def test_packing_holds_every_token_once_in_its_row(lengths, shared, side):
    features = batch(tuple(lengths), shared, side)
    mask = features["attention_mask"].bool()
    packing = Packing(features["attention_mask"], shared)
    # a number for each token
    values = torch.arange(features["input_ids"].numel()).view_as(features["input_ids"])
    packed = packing.pack(values)
    found = packed[0, :shared].tolist()
    batch_rows = packing.rows.split([count for count, _ in packing.rectangle_shapes])
    for rectangle, real, rows in zip(
        packing.rectangles(packed), packing.real_tokens(), batch_rows, strict=True
    ):
        assert real.sum(dim=1).min() >= MIN_FILL * rectangle.shape[1] - 1
        for tokens, is_real, row in zip(rectangle, real, rows.tolist(), strict=True):
            assert tokens[is_real].tolist() == values[row][mask[row]][shared:].tolist()
            assert set(tokens[~is_real].tolist()) <= {tokens[is_real][-1].item()}
            found += tokens[is_real].tolist()
    assert len(found) == len(set(found)) == int(mask.sum()) - shared * (len(lengths) - 1)


def last_tokens(features: dict[str, Tensor], rows: Tensor) -> list[int]:
    """Return the last real token of some rows of a batch padded on the right."""
    last = features["attention_mask"].sum(dim=1) - 1
    return features["input_ids"][rows, last[rows]].tolist()


@given(st.lists(st.integers(2, 20), min_size=1, max_size=9), st.data())
@settings(deadline=None)
def test_keep_equals_packing_the_kept_rows(lengths, data):
    kept = data.draw(st.sets(st.integers(0, len(lengths) - 1), min_size=1).map(sorted))
    features = batch(tuple(lengths), shared=1)
    packing = Packing(features["attention_mask"], 1)
    packed = packing.pack(features["input_ids"])
    rows = packing.rows[kept]
    packed = packed[:, packing.keep(torch.tensor(kept))]
    assert packing.rows.tolist() == rows.tolist()
    assert packed.shape[1] == 1 + sum(count * width for count, width in packing.rectangle_shapes)
    last_positions = packing.row_starts() + packing.lengths - 1
    assert packed[0, last_positions].tolist() == last_tokens(features, rows)


@given(st.lists(st.integers(2, 20), min_size=1, max_size=9), st.integers(0, 1), st.integers(1, 200))
@settings(deadline=None)
def test_chunks_hold_every_row_once(lengths, shared, tokens):
    features = batch(tuple(lengths), shared)
    packing = Packing(features["attention_mask"], shared)
    packed, own = packing.pack(features["input_ids"]), []
    for positions, chunk in packing.chunks(tokens):
        assert positions[:shared].tolist() == list(range(shared))
        assert len(positions) < shared + tokens + chunk.rectangle_shapes[-1][1]
        assert len(positions) == shared + sum(count * width for count, width in chunk.rectangle_shapes)
        last_positions = chunk.row_starts() + chunk.lengths - 1
        assert packed[0, positions][last_positions].tolist() == last_tokens(features, chunk.rows)
        own += positions[shared:].tolist()
    assert own == list(range(shared, packed.shape[1]))
