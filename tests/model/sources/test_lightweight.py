"""Tests of checkpoints in the layout of bge-reranker-v2.5-gemma2-lightweight; tests/test_golden.py has their scores."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lwr.common.errors import BadInput
from lwr.config.model import BaseModelConfig
from lwr.export.classifier import check_classifier
from lwr.model.base import try_base_model
from lwr.model.loading import load_base_model
from lwr.model.reranker import LayerwiseReranker
from lwr.model.storage import read_stored_exits

PAIRS = [("who?", "Raise ValueError."), ("how is a string decoded?", "Decode a JSON document from a string.")]


@pytest.fixture
def checkpoint(golden, tmp_path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(golden / "gemma2-lightweight-tiny", tmp_path / "checkpoint"))


def change_config(checkpoint: Path, **values) -> None:
    file = checkpoint / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_checkpoint_is_saved_and_read_again(checkpoint, tmp_path):
    model = LayerwiseReranker.from_pretrained(checkpoint, device="cpu")
    expected = model.score(PAIRS, layers="all", compression="3/2")
    model.save_pretrained(tmp_path / "saved")
    again = LayerwiseReranker.from_pretrained(tmp_path / "saved", device="cpu")
    assert again.score_cap == 30
    assert again.prompt.template == model.prompt.template
    assert type(again.backbone).__name__ == "Gemma2Model"
    assert (again.score(PAIRS, layers="all", compression="3/2") == expected).all()
    assert read_stored_exits(str(checkpoint)) == read_stored_exits(str(tmp_path / "saved")) == [2, 3, 4, 5, 6]


def test_scores_are_capped(checkpoint):
    model = LayerwiseReranker.from_pretrained(checkpoint, device="cpu")
    capped = model.score(PAIRS, layers="all")
    model.score_cap = None
    plain = torch.from_numpy(model.score(PAIRS, layers="all"))
    torch.testing.assert_close(torch.from_numpy(capped), 30 * torch.tanh(plain / 30))
    change_config(checkpoint, final_logit_softcapping=None)
    uncapped = LayerwiseReranker.from_pretrained(checkpoint, device="cpu")
    assert (uncapped.score(PAIRS, layers="all") == plain.numpy()).all()


def test_checkpoint_is_a_base_model(checkpoint):
    loaded = load_base_model(BaseModelConfig(model=str(checkpoint), num_layers=4))
    assert sorted(loaded.heads) == [2, 3, 4]
    assert loaded.backbone.config.num_hidden_layers == 4
    assert try_base_model(BaseModelConfig(model=str(checkpoint))).attention == "eager"


@pytest.mark.parametrize("values", [{"layer_wise": False}, {"layer_sep": 2}])
def test_checkpoint_without_a_head_at_every_layer_is_refused(checkpoint, values):
    change_config(checkpoint, **values)
    with pytest.raises(BadInput, match="only checkpoints with a head at every layer are read"):
        LayerwiseReranker.from_pretrained(checkpoint)


def test_missing_head_is_named(checkpoint):
    tensors = load_file(checkpoint / "model.safetensors")
    del tensors["lm_head.3.linear_head.weight"]
    save_file(tensors, checkpoint / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadInput, match=r"no tensor 'lm_head\.3\.linear_head\.weight'"):
        LayerwiseReranker.from_pretrained(checkpoint)


def test_capped_scores_are_not_exported(checkpoint):
    with pytest.raises(ValueError, match=r"soft-capped at 30\.0, which no stock classifier does"):
        check_classifier(LayerwiseReranker.from_pretrained(checkpoint, attention="eager"))
