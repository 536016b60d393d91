"""Tests of exits as modular CrossEncoders, loaded by sentence-transformers."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest
import tiny
import torch
from exported import PAIRS, assert_scores_close, reranker_scores, save_reranker, save_reranker_and_base

from lwr.export import cross_encoder
from lwr.export.export import export
from lwr.export.readme import SAMPLE_PASSAGE, SAMPLE_QUERY

LAYOUT = "sentence-transformers"


def cross_encoder_scores(folder: Path, pairs=PAIRS) -> torch.Tensor:
    """Return the scores that sentence-transformers computes from an export, float32 [pairs]."""
    sentence_transformers = pytest.importorskip(
        "sentence_transformers", reason="needs the extra: pip install 'lwr[sentence-transformers]'"
    )
    model = sentence_transformers.CrossEncoder(str(folder), device="cpu")
    return torch.tensor(model.predict(pairs))


@pytest.mark.parametrize(
    ("architecture", "pooling"),
    [
        *(("granite", "last"), ("lfm2", "last"), ("llama", "last"), ("llama", "mean"), ("gemma2", "last")),
        *(("bert", "mean"), ("bert", "first"), ("modernbert", "mean"), ("xlm-roberta", "first")),
    ],
)
def test_exit_scores_the_same_without_an_additional_block(architecture, pooling, tmp_path):
    model = save_reranker_and_base(tmp_path, architecture, pooling=pooling)
    export(model, 3, tmp_path / "out", LAYOUT)
    # pairs that fit into a row: longer ones are cut elsewhere
    expected = reranker_scores(model, 3, PAIRS[:2])
    assert expected.std() > 0.1, "the pairs must differ for this test to mean anything"
    assert_scores_close(cross_encoder_scores(tmp_path / "out", PAIRS[:2]), expected)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 3


def test_a_long_pair_is_cut_as_in_training(tmp_path):
    model = save_reranker_and_base(tmp_path, "llama")
    export(model, 3, tmp_path / "out", LAYOUT)
    assert_scores_close(cross_encoder_scores(tmp_path / "out"), reranker_scores(model, 3))


def test_capped_scores_are_exported(tmp_path):
    backbone, tokenizer = tiny.backbone("llama"), tiny.tokenizer(encoder=False)
    model = save_reranker(tmp_path / "model", backbone, tokenizer, score_cap=2.0)
    export(model, 3, tmp_path / "out", LAYOUT)
    expected = reranker_scores(model, 3)
    assert not torch.allclose(expected, 2 * torch.atanh(expected / 2), atol=0.1), "the cap must matter"
    assert_scores_close(cross_encoder_scores(tmp_path / "out"), expected)


def test_readme_has_a_score_to_compare_with(tmp_path):
    model = save_reranker_and_base(tmp_path, "granite")
    export(model, 3, tmp_path / "out", LAYOUT)
    readme = (tmp_path / "out" / "README.md").read_text()
    score = reranker_scores(model, 3, [(SAMPLE_QUERY, SAMPLE_PASSAGE)]).item()
    assert f"# {score:.4f}" in readme
    assert "library_name: sentence-transformers" in readme
    assert "A: {query}" in readme


def test_export_with_different_scores_is_refused(tmp_path, monkeypatch):
    model = save_reranker_and_base(tmp_path, "bert", pooling="mean")
    monkeypatch.setitem(cross_encoder.POOLING, "mean", "max")
    with pytest.raises(ValueError, match=r"CrossEncoder.*scores differ"):
        export(model, 3, tmp_path / "out", LAYOUT)
    assert not (tmp_path / "out").exists()


def test_older_sentence_transformers_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(cross_encoder, "version", lambda name: "5.3.0")
    with pytest.raises(ValueError, match=r"5\.4 or later.*5\.3\.0"):
        export(save_reranker_and_base(tmp_path, "bert"), 3, tmp_path / "out", LAYOUT)


def test_missing_sentence_transformers_is_named(tmp_path, monkeypatch):
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(cross_encoder, "version", missing)
    with pytest.raises(ValueError, match=r"pip install 'lwr\[sentence-transformers\]'"):
        export(save_reranker_and_base(tmp_path, "bert"), 3, tmp_path / "out", LAYOUT)
