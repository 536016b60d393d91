"""Tests that a base model is accepted exactly if it can be trained, scored, reranked by a cascade, and loaded again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from architectures import ARCHITECTURES, LAYERS, Architecture
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from lwr.common.errors import BadInput
from lwr.common.json_lines import write_jsonl
from lwr.config.evaluation import ScoringConfig
from lwr.config.model import BaseModelConfig, PromptTemplate
from lwr.config.training import TrainingConfig
from lwr.formats import parquet
from lwr.formats.beir import Passage, write_collection
from lwr.formats.trec import write_run
from lwr.model.base import base, try_base_model
from lwr.model.cascade_schedule import Schedule
from lwr.model.reranker import LayerwiseReranker
from lwr.scoring.query_candidates import QueryCandidates
from lwr.scoring.rerank import rerank
from lwr.scoring.score import score
from lwr.training.check_base_models import check_base_models
from lwr.training.train import train

FAST = set(
    "llama gpt2 opt lfm2 bloom mamba bert roberta distilbert mpnet deberta-v2 albert convbert t5".split()
)
"""The architectures that each run of the tests tries: one of each kind. The others are slow together."""
TEMPLATE = PromptTemplate(query="{query}", passage="{passage}", after=["?"])
SETTINGS = TrainingConfig(
    steps=1, groups_per_batch=1, group_size=3, query_max_len=8, passage_max_len=40, log_steps=1
)
GRID = """\
datasets:
  docs: {{source: {{kind: python_docs}}}}
base_models:
  tiny: {{model: {folder}}}
start_layers: [2]
"""
QUERIES = {f"q{i}": f"decode the number {i * i}" for i in range(3)}
TEXTS = {f"d{i}": "def decode(x): return x " * (i % 3 + 1) + str(i) for i in range(6)}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Write a collection, a run and training groups."""
    folder = tmp_path_factory.mktemp("data")
    splits = {split: {f"q{i}": {f"d{i}": 1}} for i, split in enumerate(("train", "dev", "test"))}
    passages = [Passage(name, "", text) for name, text in TEXTS.items()]
    write_collection(folder / "collection", passages, QUERIES, splits)
    write_run(folder / "test.trec", {"q2": [(name, 9.0 - i) for i, name in enumerate(TEXTS)]}, "made-up")
    group = {"query": QUERIES["q0"], "pos": [TEXTS["d0"]], "neg": [TEXTS["d1"], TEXTS["d2"]]}
    write_jsonl(folder / "groups.jsonl", [group, group])
    return folder


def use(config: BaseModelConfig, data: Path, out: Path) -> None:
    """Train, score, rerank by a cascade, and score by the model loaded again. Raise what goes wrong."""
    collection, run = data / "collection", data / "test.trec"
    train(config, 1, SETTINGS, data / "groups.jsonl", collection, run, 1, out / "model")
    score(out / "model", collection, "test", run, ScoringConfig(), out / "scores.parquet")
    recorded = parquet.read(out / "scores.parquet", []).set_index("doc_id")

    reranker = LayerwiseReranker.from_pretrained(out / "model", device="cpu")
    last = reranker.exits[-1]
    pairs = [(QUERIES["q2"], TEXTS[name]) for name in recorded.index]
    alone = np.array([reranker.score([pair])[0] for pair in pairs])
    expected = recorded[f"layer_{last}"].to_numpy()
    np.testing.assert_allclose(alone, expected, rtol=1e-3, atol=1e-4)

    query = QueryCandidates("q2", QUERIES["q2"], list(TEXTS), list(TEXTS.values()))
    (ranked,) = rerank(reranker, [query], Schedule.parse(f"1:3 {last}"))
    finalists = [passage for passage in ranked.passages if passage.layer == last]
    assert {passage.doc_id for passage in finalists} == set(recorded["layer_1"].nlargest(3).index)
    np.testing.assert_allclose(
        [passage.score for passage in finalists],
        [recorded[f"layer_{last}"][passage.doc_id] for passage in finalists],
        rtol=1e-3,
        atol=1e-4,
    )


@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(each, id=each.name, marks=() if each.name in FAST else pytest.mark.slow)
        for each in ARCHITECTURES
    ],
)
def test_accepted_exactly_if_it_can_be_used(architecture: Architecture, data, tmp_path):
    folder = architecture.save(tmp_path / "base")
    config = BaseModelConfig(model=str(folder), template=TEMPLATE)
    grid = tmp_path / "grid.yaml"
    grid.write_text(GRID.format(folder=folder), encoding="utf-8")
    if architecture.refused is None:
        base(config, tmp_path / "base.json")
        assert check_base_models(grid) == []
        use(config, data, tmp_path)
    else:
        with pytest.raises(ValueError, match=rf"grid\.yaml:4: .*{architecture.refused}"):
            check_base_models(grid)
        with pytest.raises(ValueError, match=architecture.refused):
            try_base_model(config)
        with pytest.raises(Exception):  # noqa: B017, PT011 - whatever the libraries raise
            use(config, data, tmp_path)


@pytest.mark.parametrize(
    ("name", "positions"), [("bert", 512), ("roberta", 512), ("opt", 512), ("gpt2", 512)]
)
def test_rows_fit_the_positions_exactly(name, positions, tmp_path):
    (architecture,) = [each for each in ARCHITECTURES if each.name == name]
    tried = try_base_model(BaseModelConfig(model=str(architecture.save(tmp_path / "base"))))
    assert tried.positions == positions
    backbone = AutoModel.from_pretrained(tmp_path / "base")
    backbone(input_ids=torch.full((1, positions), 5))
    with pytest.raises((IndexError, RuntimeError)):
        backbone(input_ids=torch.full((1, positions + 1), 5))


@pytest.mark.parametrize(
    "architecture", [each for each in ARCHITECTURES if each.name in ("lfm2", "mpnet", "llama")]
)
def test_pad_token_without_embedding_does_no_harm(architecture, data, tmp_path):
    folder = architecture.save(tmp_path / "base")
    tiny.tokenizer_padding_beyond(tiny.VOCABULARY, architecture.encoder).save_pretrained(folder)
    config = BaseModelConfig(model=str(folder), template=TEMPLATE)
    base(config, tmp_path / "base.json")
    use(config, data, tmp_path)


@pytest.mark.parametrize(
    "architecture", [each for each in ARCHITECTURES if each.name in ("gpt2", "distilbert", "nomic_bert")]
)
@pytest.mark.parametrize("damage", ["missing", "shape"])
def test_tensors_of_all_blocks_are_checked(architecture, damage, tmp_path):
    file = architecture.save(tmp_path / "base") / "model.safetensors"
    tensors = load_file(file)
    name = max(name for name in tensors if f".{LAYERS - 1}." in name and name.endswith(".weight"))
    damaged = {} if damage == "missing" else {name: tensors[name][1:].clone()}
    save_file({each: t for each, t in tensors.items() if each != name} | damaged, file, {"format": "pt"})
    with pytest.raises(BadInput, match=rf"base: .*({'lacks 1 tensors' if damage == 'missing' else 'shape'})"):
        try_base_model(BaseModelConfig(model=str(tmp_path / "base")))


def test_attention_in_place_of_sdpa_is_reported_and_recorded(tmp_path, capsys):
    (mpnet,) = [each for each in ARCHITECTURES if each.name == "mpnet"]
    base(BaseModelConfig(model=str(mpnet.save(tmp_path / "base"))), tmp_path / "base.json")
    assert "'eager' is used" in capsys.readouterr().err
    assert json.loads((tmp_path / "base.json").read_text())["attention"] == "eager"


def test_widths_are_refused_where_tokens_mix_otherwise(tmp_path):
    for name, problems in (("lfm2", "score.widths: passages cannot be compressed"), ("bert", None)):
        (architecture,) = [each for each in ARCHITECTURES if each.name == name]
        grid = tmp_path / f"{name}.yaml"
        text = GRID.format(folder=architecture.save(tmp_path / name)) + "score: {widths: [[2, 2]]}\n"
        grid.write_text(text, encoding="utf-8")
        if problems is None:
            assert check_base_models(grid) == []
        else:
            with pytest.raises(ValueError, match=problems):
                check_base_models(grid)
