"""Tests of heads that begin as the head of a cross-encoder: equal logits, what is left out, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification

from lwr.common.errors import BadInput
from lwr.config.model import BaseModelConfig
from lwr.config.training import TrainingConfig
from lwr.export.classifier import build_classifier
from lwr.model.batching import pad
from lwr.model.loading import load_base_model
from lwr.model.reranker import LayerwiseReranker
from lwr.model.sources.cross_encoder import NOT_LINEAR
from lwr.training.check_base_models import check_base_models
from lwr.training.train import build_reranker

GRID = """\
datasets: {{docs: {{source: {{kind: python_docs}}}}}}
base_models: {{tiny: {{model: {model}, pooling: {pooling}}}}}
start_layers: [2]
train: {{head_init: cross_encoder}}
"""
SETTINGS = TrainingConfig(head_init="cross_encoder", query_max_len=16, passage_max_len=160)
PAIRS = [("decode a string", "json.loads decodes."), ("decode a string", "No."), ("Yes", "a, b and c")]
DECODERS = ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3_text"]


def save_cross_encoder(architecture: str, folder: Path, labels: int = 1) -> BaseModelConfig:
    """Save a sequence classifier with random weights, also of its biases, and its tokenizer."""
    torch.manual_seed(0)
    settings = tiny.SHAPE | tiny.ARCHITECTURES[architecture] | {"num_labels": labels}
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(architecture, **settings))
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    encoder = architecture in tiny.ENCODERS
    tiny.tokenizer(encoder).save_pretrained(folder)
    return BaseModelConfig(model=str(folder), pooling="first" if encoder else None)


@torch.no_grad()
def score_both(base: BaseModelConfig, reranker: LayerwiseReranker) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits of the cross-encoder and the scores of the deepest exit, float32 [pairs] each."""
    features = pad(reranker.prompt.rows(PAIRS), reranker.prompt.tokenizer, reranker.num_embeddings)
    model = AutoModelForSequenceClassification.from_pretrained(base.model).eval()
    (scores,) = reranker.eval().encode(features, reranker.exits[-1:])
    return model(**features).logits[:, 0], scores


def begins_everywhere_as_deepest(reranker: LayerwiseReranker) -> bool:
    return all(torch.equal(reranker.head(k), reranker.head(reranker.exits[-1])) for k in reranker.exits)


@pytest.mark.parametrize("architecture", DECODERS)
def test_deepest_exit_of_a_decoder_gives_the_logits(architecture, tmp_path, capsys):
    base = save_cross_encoder(architecture, tmp_path)
    reranker = build_reranker(base, 2, SETTINGS)
    logits, scores = score_both(base, reranker)
    torch.testing.assert_close(scores, logits, atol=1e-5, rtol=1e-5)
    assert torch.equal(reranker.head(2), load_file(tmp_path / "model.safetensors")["score.weight"][0])
    assert begins_everywhere_as_deepest(reranker)
    assert "the deepest exit gives its logits" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("architecture", "pooling"),
    [
        ("bert", "first"),
        ("bert", "mean"),
        ("xlm-roberta", "first"),
        ("xlm-roberta", "mean"),
        ("modernbert", "first"),
        ("modernbert", "mean"),
    ],
)
def test_exported_exit_of_an_encoder_trains_further_from_its_own_scores(architecture, pooling, tmp_path):
    trained = LayerwiseReranker(tiny.backbone(architecture), tiny.tokenizer(encoder=True), 2, pooling=pooling)
    torch.nn.init.normal_(trained.heads[0])
    build_classifier(trained, 2).save_pretrained(tmp_path)
    tiny.tokenizer(encoder=True).save_pretrained(tmp_path)
    # the classifier of BERT and XLM-RoBERTa takes the mean in a block of its own, and reads the first token after it
    read = pooling if architecture == "modernbert" else "first"
    base = BaseModelConfig(model=str(tmp_path), pooling=read)
    logits, scores = score_both(base, build_reranker(base, 1, SETTINGS))
    torch.testing.assert_close(scores, logits, atol=1e-4, rtol=1e-4)


def test_bias_is_left_out_and_named(tmp_path, capsys):
    base = save_cross_encoder("bert", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["bert.pooler.dense.weight"] *= 1e-3  # so that tanh passes its input on
    weights["bert.pooler.dense.bias"].zero_()
    weights["classifier.weight"] *= 1e3
    weights["classifier.bias"].fill_(0.25)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    logits, scores = score_both(base, build_reranker(base, 2, SETTINGS))
    torch.testing.assert_close(scores + 0.25, logits, atol=1e-4, rtol=1e-4)
    assert "the logits less the bias 0.25" in capsys.readouterr().err


@pytest.mark.parametrize("architecture", ["bert", "xlm-roberta", "modernbert"])
def test_head_that_is_not_linear_is_approximated_and_its_loss_is_said(architecture, tmp_path, capsys):
    base = save_cross_encoder(architecture, tmp_path)
    reranker = build_reranker(base, 2, SETTINGS)
    head = load_base_model(base, "classifier").cross_encoder
    assert not head.is_linear
    assert 0.6 < head.agreement <= 1, "better than chance"
    assert torch.equal(reranker.head(2), head.weight)
    assert begins_everywhere_as_deepest(reranker)
    said = capsys.readouterr().err
    assert "WARNING: the cross-encoder's head is not linear" in said
    assert f"it orders {head.agreement:.0%} of the comparisons" in said


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_head_is_float32_with_bfloat16_weights(architecture, tmp_path):
    base = save_cross_encoder(architecture, tmp_path).model_copy(update={"dtype": "bfloat16"})
    head = load_base_model(base, "classifier").cross_encoder
    assert head.weight.dtype == torch.float32
    assert head.is_linear == (architecture == "llama")


def test_cut_cross_encoder_begins_with_the_same_head(tmp_path):
    base = save_cross_encoder("llama", tmp_path)
    cut = build_reranker(base.model_copy(update={"num_layers": 3}), 2, SETTINGS)
    assert cut.exits == [2, 3]
    assert torch.equal(cut.head(3), build_reranker(base, 2, SETTINGS).head(4))


def test_other_pooling_than_the_cross_encoders_is_refused(tmp_path):
    base = save_cross_encoder("bert", tmp_path).model_copy(update={"pooling": None})
    with pytest.raises(BadInput, match=r"pooling: first.*pooling is `mean`; set"):
        build_reranker(base, 2, SETTINGS)


def test_several_labels_are_refused(tmp_path):
    base = save_cross_encoder("llama", tmp_path, labels=3)
    with pytest.raises(BadInput, match="3 labels"):
        build_reranker(base, 2, SETTINGS)


def test_checkpoint_without_the_head_is_refused(tmp_path):
    base = BaseModelConfig(model=str(tiny.save("llama", tmp_path)))
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"id2label": {"0": "relevant"}}))
    with pytest.raises(BadInput, match=r"lacks score\.weight"):
        build_reranker(base, 2, SETTINGS)


def test_architecture_without_a_classifier_is_refused(tmp_path):
    base = BaseModelConfig(model=str(tiny.save("granite", tmp_path)))
    with pytest.raises(BadInput, match="no sequence classifier of granite"):
        build_reranker(base, 2, SETTINGS)


def test_check_tries_the_head(tmp_path):
    base, grid = save_cross_encoder("bert", tmp_path / "base"), tmp_path / "grid.yaml"
    grid.write_text(GRID.format(model=base.model, pooling="first"), encoding="utf-8")
    assert check_base_models(grid) == [f"  tiny: {NOT_LINEAR}"]
    grid.write_text(GRID.format(model=base.model, pooling="mean"), encoding="utf-8")
    with pytest.raises(
        BadInput, match=r"grid\.yaml:4: train\.head_init: .*set the base model's pooling to `first`"
    ):
        check_base_models(grid)
