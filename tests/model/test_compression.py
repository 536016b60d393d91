"""Tests of token compression: what becomes one, and the same scores however a compressed pass is computed."""

from __future__ import annotations

from typing import Any, cast

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lwr.config.model import PromptTemplate
from lwr.model.batch_layout import PackedLayout, PaddedLayout, RowSpans
from lwr.model.batching import pad
from lwr.model.cascade_schedule import Compression
from lwr.model.layer_hooks import UnsupportedBackbone
from lwr.model.linear.lora import LoraConfig, add_lora
from lwr.model.reranker import LayerwiseReranker
from lwr.training.recompute import set_recompute

MIX_OTHERWISE = {"lfm2", "qwen3_5_text"}
"""Architectures with convolutions or linear attention."""
COMPRESSIBLE = [name for name in tiny.ARCHITECTURES if name not in MIX_OTHERWISE]
PACKED = [name for name in COMPRESSIBLE if name != "gemma2"]  # caps its attention weights, which SDPA cannot
PASSAGES = [
    "def one(): pass",
    "x = 1",
    "a b c d e f g h i j k l m n o p q r s t",
    "",
    "return the value of the file",
]
AT_2 = Compression.at(2, 2)

compressible = pytest.mark.parametrize("architecture", COMPRESSIBLE)


def reranker(architecture: str, **options) -> LayerwiseReranker:
    """Make a reranker with a head at each of 4 layers, and scores that differ."""
    torch.manual_seed(0)
    heads = {k: torch.randn(tiny.HIDDEN) * 0.2 for k in range(1, tiny.LAYERS + 1)}
    tokenizer = tiny.tokenizer(encoder=architecture in tiny.ENCODERS)
    options = {"initial_heads": heads, "query_max_len": 16, "passage_max_len": 160} | options
    return LayerwiseReranker(tiny.backbone(architecture), tokenizer, 1, **options).eval()


def padded(model: LayerwiseReranker) -> LayerwiseReranker:
    """Let a reranker pad its rows."""
    if model.first_position is not None:
        model.first_position = None
        model.backbone.set_attn_implementation("sdpa")
    return model


def features(
    model: LayerwiseReranker, passages: list[str] = PASSAGES, side: str = "right"
) -> dict[str, Tensor]:
    rows = model.prompt.rows([("open a file", passage) for passage in passages])
    tokenizer = model.prompt.tokenizer
    usual, tokenizer.padding_side = tokenizer.padding_side, side
    made = pad(rows, tokenizer, mark_passages=True)
    tokenizer.padding_side = usual
    return made


@torch.no_grad()
def scores(model: LayerwiseReranker, inputs: dict[str, Tensor], compression: Compression | None) -> Tensor:
    """Return the scores [exits, passages]."""
    return torch.stack(model.encode(inputs, compression=compression))


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


# --- what becomes one -----------------------------------------------------------------------------------


@st.composite
def spans(draw) -> RowSpans:
    """Draw rows of three parts, of which the middle one is the passage."""
    parts = draw(st.lists(st.tuples(*[st.integers(0, 9)] * 2, st.integers(1, 5)), min_size=1, max_size=5))
    before, passage, after = torch.tensor(parts).T
    lengths = before + passage + after
    return RowSpans(lengths, before, before + passage, lengths - 1)


@given(spans(), st.integers(1, 5))
@settings(deadline=None)
def test_every_token_is_a_member_once_and_only_passages_shrink(before, ratio):
    after = before.compress(ratio)
    for row in range(len(before.lengths)):
        offsets = torch.arange(int(after.lengths[row]))[None]
        members, is_member = before.members(torch.tensor([row]), offsets, ratio)
        assert members[is_member].tolist() == list(range(before.lengths[row]))
        sizes = is_member[0].sum(dim=1).tolist()
        start, end = int(after.passage_starts[row]), int(after.passage_ends[row])
        assert set(sizes[:start] + sizes[end:]) <= {1}
        assert sizes[start : max(start, end - 1)] == [ratio] * max(0, end - start - 1)
        assert members[0, after.read[row], 0] == before.read[row]
        assert (members[~is_member] < before.lengths[row]).all()


@given(spans(), st.integers(1, 4), st.booleans(), st.sampled_from(["left", "right"]))
@settings(deadline=None)
def test_pooled_mean_stays_the_same(parts, ratio, packed, side):
    inputs = features_of(parts, side)
    layout = (
        PackedLayout(inputs, "mean", 0, False, with_passages=True)
        if packed
        else PaddedLayout(inputs, False, "mean", with_passages=True)
    )
    hidden = torch.randn(*layout.inputs["input_ids"].shape, 3, dtype=torch.float64)
    before = layout.pool(hidden, nn.Identity())[layout.rows.argsort()]
    shorter = layout.compress(hidden, ratio)
    torch.testing.assert_close(layout.pool(shorter, nn.Identity())[layout.rows.argsort()], before)
    assert shorter.shape[:2] == layout.inputs["input_ids"].shape == layout.weights.shape
    layout.compress(shorter, ratio)
    assert (layout.weights.sum() == parts.lengths.sum()) or packed  # packed rows repeat their last token


def features_of(parts: RowSpans, side: str) -> dict[str, Tensor]:
    """Return features with these parts, padded on one side."""
    longest = int(parts.lengths.max())
    columns = torch.arange(longest)
    mask = (columns < parts.lengths[:, None]).long()
    passage = ((columns >= parts.passage_starts[:, None]) & (columns < parts.passage_ends[:, None])).long()
    if side == "left":
        shift = (columns - (longest - parts.lengths[:, None])) % longest
        mask, passage = mask.gather(1, shift), passage.gather(1, shift)
    return {"input_ids": torch.ones_like(mask), "attention_mask": mask, "passage_mask": passage}


def test_marked_tokens_are_those_of_the_passage():
    for model in (reranker("llama"), reranker("bert")):
        inputs = features(model, ["def one(): pass"])
        marked = model.prompt.tokenizer.decode(inputs["input_ids"][inputs["passage_mask"].bool()])
        assert marked == ("B: " if model.stack.causal else "") + "def one(): pass"


@compressible
@pytest.mark.parametrize("side", ["left", "right"])
def test_blocks_after_the_layer_read_averaged_tokens(architecture, side):
    model = padded(reranker(architecture))
    inputs = features(model, PASSAGES[:3], side)
    scores(model, inputs, AT_2)  # tries the backbone
    lengths, passages = inputs["attention_mask"].sum(dim=1), inputs["passage_mask"].sum(dim=1)
    shapes: list[int] = []
    for block in model.stack.blocks:
        block.register_forward_hook(lambda _, __, output: shapes.append(output.shape[1]))
    scores(model, inputs, Compression(((1, 2), (3, 3))))
    once = -(-passages // 2)
    expected = [lengths, lengths - passages + once, lengths - passages - (-once // 3)]
    read = [int(each.max()) for each in expected]
    # when the pass resumes, blocks before the compression are called, but return what they are given
    assert shapes == [read[0], *[read[1]] * 3, *[read[2]] * 4]


@torch.no_grad()
def test_scores_by_hand_of_a_llama():
    model = reranker("llama")
    inputs = features(model, PASSAGES[2:3])
    start, passage = int(inputs["passage_mask"].argmax()), int(inputs["passage_mask"].sum())
    backbone = cast(Any, model.backbone)

    def run_blocks(hidden: Tensor, blocks: nn.ModuleList) -> Tensor:
        tokens = hidden.shape[1]
        tables = backbone.rotary_emb(hidden, torch.arange(tokens)[None])
        mask = torch.ones(tokens, tokens, dtype=torch.bool).tril()[None, None]
        for block in blocks:
            hidden = block(hidden, position_embeddings=tables, attention_mask=mask)
        return hidden

    hidden = run_blocks(backbone.embed_tokens(inputs["input_ids"]), backbone.layers[:2])
    parts = hidden.split([start, passage, hidden.shape[1] - start - passage], dim=1)
    groups = torch.cat([group.mean(dim=1, keepdim=True) for group in parts[1].split(3, dim=1)], dim=1)
    hidden = run_blocks(torch.cat([parts[0], groups, parts[2]], dim=1), backbone.layers[2:])
    expected = model.head(4) @ backbone.norm(hidden)[0, -1]
    close(scores(model, inputs, Compression.at(2, 3))[-1], expected[None])


# --- the same scores ----------------------------------------------------------------------------------


@compressible
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_ratio_1_changes_no_bit(architecture, pooling):
    model = reranker(architecture, pooling=pooling)
    inputs = features(model)
    for each in (model, padded(model)):
        plain = scores(each, inputs, None)
        assert torch.equal(scores(each, inputs, Compression.at(2, 1)), plain)
        compressed = scores(each, inputs, AT_2)
        close(compressed[:2], plain[:2])
        assert (compressed[2:] - plain[2:]).abs().max() > 0.01


@pytest.mark.parametrize("architecture", PACKED)
@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("compression", ["1/2", "2/4", "1/3 3/2"])
def test_packed_rows_score_as_padded_rows(architecture, pooling, side, compression):
    if side == "left" and architecture in ("bert", "xlm-roberta"):
        side = "right"  # learnt positions
    model = reranker(architecture, pooling=pooling)
    inputs, steps = features(model, side=side), Compression.parse(compression)
    packed = scores(model, inputs, steps)
    close(packed, scores(padded(model), inputs, steps))
    assert packed.std() > 0.01, "scores must differ for this test to mean anything"


@compressible
@pytest.mark.parametrize("packs", [False, True])
def test_batch_equals_single_rows(architecture, packs):
    model = reranker(architecture) if packs else padded(reranker(architecture))
    alone = [scores(model, features(model, [passage]), AT_2) for passage in PASSAGES]
    close(scores(model, features(model), AT_2), torch.cat(alone, dim=1))


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_shared_prefix_ends_before_the_passages(architecture):
    model = reranker(architecture)
    passages = [
        "def open_file(path): return path",
        "def open_file(path): pass",
        "def open_file(path): return path",
    ]
    inputs = features(model, passages)
    close(scores(model, inputs, Compression.at(1, 3)), scores(padded(model), inputs, Compression.at(1, 3)))


@compressible
@pytest.mark.parametrize("packs", [False, True])
@pytest.mark.parametrize("at_once", [None, 1, 40])
@torch.no_grad()
def test_compressed_survivors_score_as_survivors_compressed(architecture, packs, at_once):
    model = reranker(architecture) if packs else padded(reranker(architecture))
    for keep in ({2: 3}, {1: 4, 3: 2}):
        by_stage = model.cascade(features(model), keep, 4, at_once, compression=AT_2)
        complete = scores(model, features(model), AT_2)[[*(k - 1 for k in keep), 3]]
        survives = ~by_stage.isnan()
        assert survives.sum(dim=1).tolist() == [5, *keep.values()]
        close(by_stage[survives], complete[survives])


def test_token_that_the_head_reads_is_kept():
    short = PromptTemplate(prefix="A: ", between=" B: ", after=[])
    model = reranker("llama", template=short)
    inputs = features(model, PASSAGES[2:3])
    spans_found = RowSpans.find(inputs, "last", with_passages=True)
    assert spans_found.passage_ends.tolist() == [int(inputs["attention_mask"].sum()) - 1]
    close(scores(model, inputs, AT_2), scores(padded(model), inputs, AT_2))


# --- training -------------------------------------------------------------------------------------


@compressible
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_recompute_changes_no_gradient(architecture, lora):
    gradients = []
    for recompute in ("nothing", "blocks"):
        model = reranker(architecture)
        if lora:
            add_lora(model, LoraConfig(rank=2))
            for name, parameter in model.backbone.named_parameters():
                if "lora_B" in name:
                    nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
        set_recompute(model.backbone, model.stack.blocks, recompute)
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        torch.stack(model.encode(features(model), compression=AT_2)).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        assert all("forward" not in vars(block) for block in model.stack.blocks)
    assert gradients[0].keys() == gradients[1].keys()
    for block in range(tiny.LAYERS):
        assert any(f".{block}." in name and grad.abs().max() > 0 for name, grad in gradients[0].items())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-4, rtol=1e-3, msg=name)


# --- texts and refusals -----------------------------------------------------------------------------


def test_score_and_rank_take_a_compression():
    model = reranker("bert")
    pairs = [("open a file", passage) for passage in PASSAGES]
    expected = scores(model, features(model), Compression.parse("1/2 2/2"))
    close(torch.tensor(model.score(pairs, layers="all", compression="1/2 2/2")), expected)
    ranked = model.rank("open a file", PASSAGES, compression=Compression(((1, 2), (2, 2))))
    assert [each["corpus_id"] for each in ranked] == expected[-1].argsort(descending=True).tolist()
    cascaded = model.rank("open a file", PASSAGES, cascade="2:2 4", compression="1/2 2/2")
    best = expected[1].argsort(descending=True)[:2]
    assert {each["corpus_id"] for each in cascaded[:2]} == set(best.tolist())
    assert cascaded[0]["score"] == pytest.approx(float(expected[3, best].max()), abs=1e-5)


def test_step_below_the_last_layer_of_a_pass_changes_nothing():
    model = reranker("llama")
    pairs = [("open a file", passage) for passage in PASSAGES]
    assert (model.score(pairs, 2, compression="2/2") == model.score(pairs, 2)).all()


@pytest.mark.parametrize("architecture", sorted(MIX_OTHERWISE))
def test_backbone_that_mixes_otherwise_is_refused(architecture):
    model = reranker(architecture)
    attention = model.config._attn_implementation
    with pytest.raises(UnsupportedBackbone, match="DecoderLayer: its tokens cannot be compressed"):
        scores(model, features(model), AT_2)
    assert model.config._attn_implementation == attention


def test_features_without_passages_are_refused():
    model = reranker("llama")
    inputs = features(model)
    del inputs["passage_mask"]
    with pytest.raises(ValueError, match="features without passage_mask"):
        model.encode(inputs, compression=AT_2)


def test_layer_that_no_block_follows_is_refused():
    model = reranker("llama")
    with pytest.raises(
        ValueError, match=r"'2/2 4/2': no block reads the tokens after layer 4; give layers in 1\.\.3"
    ):
        model.score([("a", "b")], compression="2/2 4/2")


@pytest.mark.parametrize("text", ["2", "2/0", "0/2", "2/2 2/2", "3/2 2/2", "2/x", "2:2", "", "2/2/2"])
def test_malformed_compression_is_refused(text):
    with pytest.raises(ValueError, match=r"^compression "):
        Compression.parse(text)


def test_rank_refuses_a_compression_that_changes_nothing():
    model = reranker("bert")
    with pytest.raises(ValueError, match="no block reads the tokens after layer 2; give layers below 2"):
        model.rank("open a file", PASSAGES, 2, compression="2/2")
    with pytest.raises(ValueError, match=r"has one: give one of the two"):
        model.rank("open a file", PASSAGES, cascade="2/2 4", compression="2/2")


def test_cascade_with_widths_is_a_cascade_with_a_compression():
    model = reranker("bert")
    ranked = model.rank("open a file", PASSAGES, cascade="1/2 2/2:3 4")
    assert ranked == model.rank("open a file", PASSAGES, cascade="2:3 4", compression="1/2 2/2")
    assert ranked != model.rank("open a file", PASSAGES, cascade="2:3 4")


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 9)), min_size=1, unique_by=lambda step: step[0]))
def test_parse_reads_what_str_writes(steps):
    compression = Compression(tuple(sorted(steps)))
    assert Compression.parse(str(compression)) == compression
