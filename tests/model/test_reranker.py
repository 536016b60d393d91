"""Tests of LayerwiseReranker on every architecture: scores, heads and gradients."""

from __future__ import annotations

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel

from lwr.config.model import PromptTemplate
from lwr.config.training import LoraConfig, Recompute
from lwr.model.batching import pad
from lwr.model.linear.lora import add_lora
from lwr.model.prompt import yes_token
from lwr.model.reranker import LayerwiseReranker
from lwr.training.losses.layerwise import LayerwiseLoss, assign_teachers, layerwise_loss
from lwr.training.recompute import find_feed_forward, set_recompute

QUERY = "how is a string decoded?"
PASSAGES = [
    "Decode a JSON document from a string.",
    "Return the Python representation, which is a string with the whole of a JSON document in it, of `s`.",
    "Serialize.",
    "Raise ValueError if the document ends too early or has something after its end.",
]
SHORT = PromptTemplate(query="{query}", passage="{passage}", after=["?"])
"""A template whose last token follows the passage closely, so that one convolution or linear attention reads it."""
EVERY_LAYER = list(range(1, tiny.LAYERS + 1))

architectures = pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)


def reranker(architecture: str, start_layer: int = 1, **options) -> LayerwiseReranker:
    """Make a reranker with components of heads of about 0.2, so that scores differ by a few units."""
    backbone = tiny.backbone(architecture)
    tokenizer = tiny.tokenizer(encoder=architecture in tiny.ENCODERS)
    heads = {k: torch.randn(tiny.HIDDEN) * 0.2 for k in EVERY_LAYER}
    options = {"initial_heads": heads, "template": SHORT} | options
    return LayerwiseReranker(backbone, tokenizer, start_layer, **options).eval()


def features(
    model: LayerwiseReranker, passages: list[str] = PASSAGES, side: str = "right"
) -> dict[str, Tensor]:
    return pad_on(side, model.prompt.rows([(QUERY, passage) for passage in passages]), model.tokenizer)


def pad_on(side: str, rows, tokenizer) -> dict[str, Tensor]:
    usual, tokenizer.padding_side = tokenizer.padding_side, side
    padded = pad(rows, tokenizer)
    tokenizer.padding_side = usual
    return padded


@torch.no_grad()
def scores(model: LayerwiseReranker, **options) -> Tensor:
    """Return the scores [exits, passages]."""
    return torch.stack(model.encode(features(model, **options)))


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


# --- scores --------------------------------------------------------------------------------------------


@architectures
@torch.no_grad()
def test_scores_equal_normed_pooled_states_times_heads(architecture):
    model = reranker(architecture)
    batch = features(model)
    mask = batch["attention_mask"]
    states = model.backbone(**batch, output_hidden_states=True).hidden_states
    last = model.backbone(**batch).last_hidden_state
    for k, by_row in zip(model.exits, model.encode(batch), strict=True):
        normed = last if k == tiny.LAYERS else model.stack.norm(states[k])
        for row, length in enumerate(mask.sum(dim=1).tolist()):
            real = normed[row, :length]
            pooled = real[-1] if architecture in tiny.DECODERS else real.mean(dim=0)
            close(by_row[row], pooled @ model.head(k))
    assert by_row.std() > 0.01, "scores must differ for this test to mean anything"


@pytest.mark.parametrize("architecture", tiny.ENCODERS)
@torch.no_grad()
def test_encoder_with_first_token_pooling(architecture):
    model = reranker(architecture, pooling="first")
    batch = features(model)
    close(model.encode(batch)[-1], model.backbone(**batch).last_hidden_state[:, 0] @ model.head(tiny.LAYERS))


@architectures
def test_left_padding_equals_right_padding(architecture):
    if architecture == "bert":
        pytest.skip(
            "BERT counts positions from the row's first token, padding too; its tokenizers pad on the right"
        )
    model = reranker(architecture)
    close(scores(model, side="left"), scores(model, side="right"))


def test_learnt_positions_count_from_the_first_real_token():
    # The decoders above use relative positions, which padding does not change.
    torch.manual_seed(0)
    gpt2 = AutoModel.from_config(AutoConfig.for_model("gpt2", **tiny.SHAPE)).eval()
    model = LayerwiseReranker(gpt2, tiny.tokenizer(encoder=False), start_layer=1, template=SHORT).eval()
    nn.init.normal_(model.heads[0])
    close(scores(model, side="left"), scores(model, side="right"))


@architectures
@pytest.mark.parametrize("side", ["left", "right"])
def test_batch_equals_single_rows(architecture, side):
    if architecture == "bert" and side == "left":
        pytest.skip(
            "BERT counts positions from the row's first token, padding too; its tokenizers pad on the right"
        )
    model = reranker(architecture)
    alone = torch.cat([scores(model, passages=[passage]) for passage in PASSAGES], dim=1)
    close(scores(model, side=side), alone)


@architectures
@torch.no_grad()
def test_single_layers_score_as_in_the_full_pass(architecture):
    model = reranker(architecture, start_layer=2)
    batch = features(model)
    full = dict(zip(model.exits, model.encode(batch), strict=True))
    assert list(full) == [2, 3, 4]
    for k in model.exits:
        assert torch.equal(model.encode(batch, [k])[0], full[k])
    fourth, second = model.encode(batch, [4, 2])
    assert torch.equal(fourth, full[4])
    assert torch.equal(second, full[2])


@architectures
@torch.no_grad()
def test_last_block_computes_only_the_tokens_that_heads_read(architecture):
    model = reranker(architecture)
    batch = features(model)
    one_token = model.first_position is not None and model.pooling != "mean"
    tokens: list[int] = []
    hooks = [
        block.register_forward_hook(
            lambda _, __, out: tokens.append(
                (out if isinstance(out, torch.Tensor) else out[0]).shape[:-1].numel()
            )
        )
        for block in model.stack.blocks
    ]
    narrow = model.encode(batch, [3], narrow=True)[0]
    for hook in hooks:
        hook.remove()
    assert len(tokens) == 3
    assert (tokens[2] < tokens[1]) == one_token, tokens
    assert tokens[0] == tokens[1]
    close(narrow, model.encode(batch, [3])[0])


def test_layer_without_head_is_refused():
    model = reranker("llama", start_layer=2)
    with pytest.raises(ValueError, match=r"layers \[1, 5\] have no head; exits are 2..4"):
        model.encode(features(model), [1, 2, 5])


@pytest.mark.parametrize("start_layer", [0, 5])
def test_start_layer_outside_the_layers_is_refused(start_layer):
    with pytest.raises(ValueError, match=f"start_layer is {start_layer}, but layers are 1..4"):
        reranker("llama", start_layer=start_layer)


def test_decoder_with_first_token_pooling_is_refused():
    with pytest.raises(ValueError, match="the first token has read nothing else"):
        reranker("llama", pooling="first")


@torch.no_grad()
def test_scores_are_float32_under_bfloat16_autocast():
    model = reranker("llama")
    expected = scores(model)
    model.backbone.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        halved = model.encode(features(model))
    assert all(by_row.dtype == torch.float32 for by_row in halved)
    torch.testing.assert_close(torch.stack(halved), expected, atol=0.2, rtol=0.1)


# --- heads ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "every", "exits"), [(1, 2, [1, 3, 4]), (2, 2, [2, 4]), (1, 9, [1, 4])])
@torch.no_grad()
def test_heads_at_each_nth_layer_and_the_last(start, every, exits):
    all_layers, some = reranker("llama"), reranker("llama", start, head_every=every)
    assert some.exits == exits
    assert torch.equal(scores(some), scores(all_layers)[[k - 1 for k in exits]])
    assert all(torch.equal(some.head(k), all_layers.head(k)) for k in exits)
    by_stage = some.cascade(features(some), {exits[0]: 2}, exits[-1])
    close(by_stage[0], scores(all_layers)[exits[0] - 1])
    with pytest.raises(ValueError, match=rf"exits are {'1, 3, 4|2, 4|1, 4'}$"):
        some.encode(features(some), [exits[0] + 1 if exits[0] + 1 not in exits else 3])


def test_distance_of_heads_below_one_is_refused():
    with pytest.raises(ValueError, match="head_every is 0"):
        reranker("llama", head_every=0)


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "olmo2", "qwen3_5_text", "modernbert"])
@torch.no_grad()
def test_own_norms_begin_as_the_shared_norm_to_the_byte(architecture):
    shared, own = reranker(architecture), reranker(architecture, own_norms=True)
    assert torch.equal(scores(own), scores(shared))
    assert not any(p.requires_grad for p in own.stack.norm.parameters()), "no head reads it"
    for parameter in own.norm(2).parameters():
        parameter.add_(0.5)
    changed = (scores(own) != scores(shared)).any(dim=1)
    assert changed.tolist() == [False, True, False, False], "the norm of layer 2 is of layer 2 alone"


@torch.no_grad()
def test_cascade_uses_own_norms():
    model = reranker("llama", own_norms=True)
    for norm in model.norms:
        torch.nn.init.normal_(norm.weight)
    by_stage, all_scores = model.cascade(features(model), {2: 1}, 4), scores(model)[[1, 3]]
    kept = ~by_stage.isnan()
    assert kept.sum(dim=1).tolist() == [len(PASSAGES), 1]
    close(by_stage[kept], all_scores[kept])


@pytest.mark.parametrize("architecture", ["bert", "xlm-roberta"])
def test_own_norms_without_a_final_norm_are_refused(architecture):
    with pytest.raises(ValueError, match="no final norm with weights; use exit_norm: shared"):
        reranker(architecture, own_norms=True)


def test_heads_per_exit_and_shared_head():
    own, shared = reranker("llama", 2), reranker("llama", 2, shared_head=True)
    assert [len(own.heads), len(shared.heads)] == [3, 1]
    assert len({own.head(k) for k in own.exits}) == 3
    assert {shared.head(k) for k in shared.exits} == {shared.heads[0]}


def test_heads_are_initialised_from_the_yes_row():
    causal_lm, tokenizer = tiny.causal_lm("llama"), tiny.tokenizer(encoder=False)
    row = causal_lm.lm_head.weight[yes_token(tokenizer)].detach().clone()
    model = LayerwiseReranker(causal_lm, tokenizer, start_layer=2)
    for k in model.exits:
        assert torch.equal(model.head(k).data, row)
    model.head(2).data.zero_()
    assert model.head(3).norm() > 0, "the heads start alike but are separate parameters"
    assert torch.equal(causal_lm.lm_head.weight[yes_token(tokenizer)], row), "the heads must be copies"


def test_heads_are_random_without_a_vocabulary_head():
    torch.manual_seed(1)
    model = reranker("llama", initial_heads=None)
    torch.manual_seed(1)
    again = reranker("llama", initial_heads=None)
    assert len({tuple(head.tolist()) for head in model.heads}) == tiny.LAYERS
    assert torch.stack(list(model.heads)).std().item() == pytest.approx(0.02, rel=0.3)
    assert all(torch.equal(a, b) for a, b in zip(model.heads, again.heads, strict=True))


def test_missing_initial_head_is_refused():
    with pytest.raises(
        ValueError, match=r"no head for layers \[1, 2\]: the checkpoint has heads at \[3, 4\]"
    ):
        reranker("llama", initial_heads={3: torch.zeros(tiny.HIDDEN), 4: torch.zeros(tiny.HIDDEN)})


# --- gradients -----------------------------------------------------------------------------------------


def trainable(model: LayerwiseReranker) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def loss_of(model: LayerwiseReranker) -> LayerwiseLoss:
    """Return the loss of two groups of two passages."""
    scores = model.train()(features(model))
    return layerwise_loss(scores.view(len(scores), 2, -1), assign_teachers(model.exits, "deepest"))


def with_lora(model: LayerwiseReranker) -> LayerwiseReranker:
    """Add an adapter whose B is not 0, because A gets no gradient from a B of 0."""
    add_lora(model, LoraConfig(rank=2, alpha=4))
    for name, p in trainable(model).items():
        if "lora_B" in name:
            nn.init.normal_(p, std=0.1)
    return model


@architectures
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_all_trainable_parameters_get_a_gradient(architecture, lora):
    model = reranker(architecture)
    if lora:
        with_lora(model)
    loss_of(model).total.backward()
    adapters = [name for name in trainable(model) if "lora_" in name]
    assert bool(adapters) == lora
    assert len(trainable(model)) == len(adapters) + len(model.heads) or not lora
    for name, p in trainable(model).items():
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name
        assert p.grad.abs().max() > 0, name


@architectures
def test_lora_adapts_every_linear_module_of_every_block(architecture):
    model = reranker(architecture)
    linear = [m for block in model.stack.blocks for m in block.modules() if isinstance(m, nn.Linear)]
    add_lora(model, LoraConfig(rank=2, alpha=4))
    adapted = [name for name in trainable(model) if "lora_A" in name]
    assert len(adapted) == len(linear) > 0
    assert all(".layers." in name or ".layer." in name for name in adapted)


@pytest.mark.parametrize(
    "architecture", ["llama", "gemma3_text", "lfm2", "qwen3_5_text", "bert", "modernbert"]
)
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("what", ["cheap", "blocks"])
def test_recompute_changes_no_gradient(architecture, lora, what):
    def gradients(what: Recompute) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = reranker(architecture)
        if lora:
            with_lora(model)
        set_recompute(model.backbone, model.stack.blocks, what)
        loss = loss_of(model).total
        loss.backward()
        return {"loss": loss.detach()} | {name: p.grad for name, p in trainable(model).items()}

    off, on = gradients("nothing"), gradients(what)
    assert off.keys() == on.keys()
    for name in off:
        torch.testing.assert_close(on[name], off[name], msg=name)


@pytest.mark.parametrize(
    ("what", "activations", "norms", "flops"),
    [("nothing", 1, 1, 2), ("cheap", 2, 1, 2), ("blocks", 2, 2, 2.8)],
)
def test_recompute_repeats_the_expected_modules(what, activations, norms, flops):
    model = reranker("llama")
    set_recompute(model.backbone, model.stack.blocks, what)
    block, calls = model.stack.blocks[0], []
    for part in (block.mlp.act_fn, block.post_attention_layernorm):
        part.register_forward_pre_hook(lambda part, _: calls.append(part))
    with FlopCounterMode(display=False) as forward:
        loss = loss_of(model).total
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    assert calls.count(block.mlp.act_fn) == activations
    assert calls.count(block.post_attention_layernorm) == norms
    # The backward pass of a product y = x W has two products, for x and for W. The last product of a block need not be
    # computed again.
    assert backward.get_total_flops() / forward.get_total_flops() == pytest.approx(flops, abs=0.2)


@architectures
def test_find_feed_forward_of_every_architecture(architecture):
    blocks = reranker(architecture).stack.blocks
    names = {
        name for block in blocks for name, part in block.named_children() if part is find_feed_forward(block)
    }
    # Blocks of BERT, and of this tiny qwen3.5, have several equally wide parts.
    others = {"bert": set(), "xlm-roberta": set(), "qwen3_5_text": set(), "lfm2": {"feed_forward"}}
    assert names == others.get(architecture, {"mlp"})


def test_single_exit_has_the_loss_of_a_cross_encoder():
    model = reranker("llama", start_layer=tiny.LAYERS)
    loss = loss_of(model)
    (by_row,) = model(features(model))
    expected = F.cross_entropy(by_row.view(2, 2), torch.zeros(2, dtype=torch.long))
    assert torch.equal(loss.total, expected)
    assert loss.distillation.tolist() == [0.0]


def test_distillation_gives_the_teacher_no_gradient():
    model = reranker("llama")
    loss_of(model).distillation.sum().backward()
    assert model.head(tiny.LAYERS).grad is None or not model.head(tiny.LAYERS).grad.any()
    deepest_block = model.stack.blocks[-1]
    assert all(p.grad is None or not p.grad.any() for p in deepest_block.parameters())
    assert all(model.head(k).grad.abs().max() > 0 for k in model.exits[:-1])


def test_unused_pooler_is_frozen():
    names = trainable(reranker("bert"))
    assert any(name.startswith("backbone.encoder") for name in names)
    assert not any("pooler" in name for name in names)
