"""Tests against scores, losses and gradients that upstream's own implementation computed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from lwr.compat import BiEncoderModel
from lwr.config.model import BaseModelConfig, PromptTemplate
from lwr.model.batching import pad
from lwr.model.cascade_schedule import Compression
from lwr.model.loading import load_base_model
from lwr.model.prompt import LinePrompts, Prompt, Row, yes_ids, yes_token
from lwr.model.reranker import LayerwiseReranker

CASES = ["long", "truncating"]


def numbers(golden: Path, file: str) -> dict:
    return json.loads((golden / file).read_text(encoding="utf-8"))


def upstream_rows(golden: Path, case: dict, tokenizer) -> list[Row]:
    """Tokenise the pairs of a case in upstream's order: the positive first, then the negatives it drew."""
    prompt = Prompt(tokenizer, PromptTemplate(), case["query_max_len"], case["passage_max_len"])
    rows = []
    for group, texts in zip(numbers(golden, "groups.json"), case["texts_in_order"], strict=True):
        passages = [passage_of(text, group["pos"] + group["neg"]) for text in texts]
        rows += prompt.rows([(group["query"], passage) for passage in passages], LinePrompts(group["prompt"]))
    return rows


def passage_of(text: str, passages: list[str]) -> str:
    """Return the passage in a decoded row, which may hold only its beginning."""
    written = text.split("\nB: ")[1].split("\n")[0]
    (passage,) = [passage for passage in passages if passage.startswith(written)]
    return passage


def upstream_features(rows: list[Row], tokenizer) -> dict[str, torch.Tensor]:
    """Return the features of lwr's rows as upstream's trainer makes them.

    Rows of lwr end where the answer follows. Upstream's trainer appends all tokens of `Yes` (here two) and reads the
    state one before the last of them, which it marks in `labels`.
    """
    answered = [Row(row.input_ids + yes_ids(tokenizer), None) for row in rows]
    features = pad(answered, tokenizer)
    labels = torch.full_like(features["input_ids"], -100)
    for label, row in zip(labels, answered, strict=True):
        label[len(row) - 1] = yes_token(tokenizer)
    return features | {"labels": labels}


@pytest.fixture
def layerwise(golden) -> BiEncoderModel:
    return BiEncoderModel.from_pretrained(golden / "minicpm-layerwise-tiny", device="cpu")


@pytest.fixture(params=CASES)
def case(golden, request) -> dict:
    return numbers(golden, "training.json")[request.param]


def test_token_ids(golden, layerwise, case):
    tokenizer = layerwise.tokenizer
    rows = upstream_rows(golden, case, tokenizer)
    assert [row.input_ids + yes_ids(tokenizer) for row in rows] == case["input_ids"]


def test_training_scores_and_loss(golden, layerwise, case):
    rows = upstream_rows(golden, case, layerwise.tokenizer)
    output = layerwise.train()(upstream_features(rows, layerwise.tokenizer))
    assert_scores(output.scores, case["scores"], layerwise.exits)
    assert output.loss.item() == pytest.approx(case["loss"], rel=1e-4)


def test_training_gradients(golden, layerwise, case):
    rows = upstream_rows(golden, case, layerwise.tokenizer)
    layerwise.train()(upstream_features(rows, layerwise.tokenizer)).loss.backward()
    for layer in layerwise.exits:
        expected = case["head_grad_norm"][str(layer)]
        assert layerwise.head(layer).grad.norm().item() == pytest.approx(expected, rel=1e-3)

    # MiniCPM scales the output of a weight: y = s·(w·x). Here the scale is folded into the weight: y = (s·w)·x. So the
    # gradient of a folded weight is 1/s of upstream's, and that of every other weight is upstream's.
    config = numbers(golden, "minicpm-layerwise-tiny/config.json")
    residual = config["scale_depth"] / math.sqrt(config["num_hidden_layers"])
    scales = {
        "embed_tokens.weight": config["scale_emb"],
        "layers.0.self_attn.q_proj.weight": 1,
        "layers.5.mlp.down_proj.weight": residual,
        "norm.weight": 1,
    }
    weights = dict(layerwise.backbone.named_parameters())
    upstream = {name.removeprefix("model."): norm for name, norm in case["grad_norm"].items()}
    assert upstream.keys() == scales.keys()
    for name, norm in upstream.items():
        assert weights[name].grad.norm().item() == pytest.approx(norm / scales[name], rel=1e-3), name


def test_raw_model_with_yes_heads(golden, case):
    loaded = load_base_model(BaseModelConfig(model=str(golden / "minicpm-raw-tiny")), head="vocabulary")
    assert yes_token(loaded.tokenizer) == case["raw_yes_token_id"]
    reranker = BiEncoderModel(
        loaded.backbone, loaded.tokenizer, train_batch_size=4, start_layer=2, initial_heads=loaded.yes_row
    )
    rows = upstream_rows(golden, case, loaded.tokenizer)
    output = reranker.train()(upstream_features(rows, loaded.tokenizer))
    assert_scores(output.scores, case["raw_scores"], reranker.exits)
    assert output.loss.item() == pytest.approx(case["raw_loss"], rel=1e-4)


@torch.no_grad()
def test_released_reranker(golden, layerwise):
    inference = numbers(golden, "inference.json")
    pairs = [tuple(pair) for pair in inference["pairs"]]

    def scores(max_length: int, layers: list[int]) -> list[torch.Tensor]:
        rows = layerwise.prompt.use_inference_lengths(max_length).rows(pairs)
        return layerwise.encode(pad(rows, layerwise.tokenizer), layers)

    assert_scores(scores(inference["max_length"], layerwise.exits), inference["scores"], layerwise.exits)
    assert_scores(scores(inference["max_length"], [3]), {"3": inference["cutoff_3_alone"]}, [3])
    assert_scores(scores(28, [3]), {"3": inference["cutoff_3_max_length_28"]}, [3])


# --- bge-reranker-v2.5-gemma2-lightweight's layout ---


@pytest.fixture
def lightweight(golden) -> LayerwiseReranker:
    return LayerwiseReranker.from_pretrained(golden / "gemma2-lightweight-tiny", device="cpu")


def lightweight_rows(golden: Path, model: LayerwiseReranker) -> list[Row]:
    return model.prompt.rows([tuple(pair) for pair in numbers(golden, "lightweight.json")["pairs"]])


def test_lightweight_token_ids_and_passages(golden, lightweight):
    expected = numbers(golden, "lightweight.json")
    rows = lightweight_rows(golden, lightweight)
    assert lightweight.exits == expected["exits"]
    assert [row.input_ids for row in rows] == expected["input_ids"]
    assert [row.before_passage for row in rows] == expected["query_lengths"]
    assert [row.after_passage for row in rows] == expected["prompt_lengths"]


@pytest.mark.parametrize("layers", [[2], [3], [2, 4]])
@pytest.mark.parametrize("ratio", [1, 2, 4])
@torch.no_grad()
def test_lightweight_scores(golden, lightweight, layers, ratio):
    (case,) = [
        case
        for case in numbers(golden, "lightweight.json")["cases"]
        if (case["compress_layers"], case["compress_ratio"]) == (layers, ratio)
    ]
    compression = Compression(tuple((layer, ratio) for layer in layers))
    features = pad(lightweight_rows(golden, lightweight), lightweight.prompt.tokenizer, mark_passages=True)
    exits = lightweight.exits
    assert_scores(lightweight.encode(features, compression=compression), case["all_exits"], exits)
    # upstream's defect: alone, each exit is scored by the head of the first
    with_first_head = lightweight.encode(features, exits[:1], compression)
    assert_scores(with_first_head, {str(exits[0]): case["alone"][str(exits[0])]}, exits[:1])
    for layer in exits[1:]:
        alone = torch.tensor(case["alone"][str(layer)])
        assert not torch.allclose(alone, torch.tensor(case["all_exits"][str(layer)]), atol=0.1)
        (own,) = lightweight.encode(features, [layer], compression)
        assert_scores([own], {str(layer): case["all_exits"][str(layer)]}, [layer])


def assert_scores(scores: list[torch.Tensor], expected: dict[str, list[float]], layers: list[int]) -> None:
    assert list(expected) == [str(layer) for layer in layers]
    for layer, by_row in zip(layers, scores, strict=True):
        torch.testing.assert_close(by_row.detach(), torch.tensor(expected[str(layer)]), atol=1e-4, rtol=0)
