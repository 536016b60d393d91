"""Tests of teachers in `lwr check`: what is refused before anything runs, in folders and on the hub."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, RevisionNotFoundError
from transformers import AutoConfig, AutoModelForSequenceClassification

from lwr.common.errors import BadInput
from lwr.training.check_base_models import check_base_models

GRID = """\
datasets: {{docs: {{source: {{kind: python_docs}}}}}}
base_models: {{}}
teachers:
  big: {{kind: {kind}, model: {model}{more}}}
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Save classifiers with one and with two labels, a decoder, and a reranker, with their tokenizers."""
    folder = tmp_path_factory.mktemp("models")
    for labels in (1, 2):
        torch.manual_seed(0)
        shape = tiny.SHAPE | tiny.ARCHITECTURES["bert"] | {"num_labels": labels}
        config = AutoConfig.for_model("bert", **shape)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder / f"labels-{labels}")
        tiny.tokenizer(encoder=True).save_pretrained(folder / f"labels-{labels}")
    tiny.save("llama", folder / "llama")
    tiny.build_reranker("llama").save_pretrained(folder / "layerwise")
    return folder


def check(tmp_path: Path, kind: str, model: str | Path, more: str = "") -> list[str]:
    grid = tmp_path / "grid.yaml"
    text = GRID.format(kind=kind, model=model, more=more)
    base = tiny.save("llama", tmp_path / "base")
    grid.write_text(
        text.replace("{}", f"{{tiny: {{model: {base}}}}}") + "start_layers: [2]\n", encoding="utf-8"
    )
    return check_base_models(grid)


def on_the_hub(monkeypatch, folder: Path) -> list[list[str]]:
    """Let the hub answer with a folder; return the patterns of files that it is asked for."""
    asked = []

    def download(_, revision=None, allow_patterns=None, local_files_only=False):
        if local_files_only:
            raise LocalEntryNotFoundError("not in the cache")
        asked.append(allow_patterns)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return asked


@pytest.mark.parametrize(
    ("kind", "model", "more"),
    [
        ("cross_encoder", "labels-1", ""),
        ("bi_encoder", "labels-1", ""),
        ("yes_no", "llama", ", yes_token: 'Yes', no_token: 'ĠNo'"),
        ("layerwise", "layerwise", ", layer: 3"),
    ],
)
def test_good_teachers_are_accepted_in_a_folder_and_on_the_hub(
    kind, model, more, models, tmp_path, monkeypatch
):
    assert check(tmp_path, kind, models / model, more) == []
    asked = on_the_hub(monkeypatch, models / model)
    assert check(tmp_path, kind, "some/teacher", more) == []
    assert asked
    assert all("*.safetensors" not in patterns for patterns in asked), "weights are large"


@pytest.mark.parametrize(
    ("kind", "model", "more", "key", "words"),
    [
        ("cross_encoder", "labels-2", "", "model", "has 2 labels"),
        ("cross_encoder", "llama", "", "model", "LlamaForCausalLM, not a ForSequenceClassification"),
        ("yes_no", "llama", ", yes_token: ja", "yes_token", "no token 'ja'"),
        ("layerwise", "layerwise", ", layer: 1", "layer", "not an exit"),
    ],
)
def test_other_models_on_the_hub_are_refused(kind, model, more, key, words, models, tmp_path, monkeypatch):
    on_the_hub(monkeypatch, models / model)
    with pytest.raises(BadInput, match=rf"grid\.yaml:4: teachers\.big\.{key}: .*{words}"):
        check(tmp_path, kind, "some/teacher", more)


@pytest.mark.parametrize("kind", ["cross_encoder", "bi_encoder"])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            lambda folder: [file.unlink() for file in folder.glob("tokenizer*")],
            "its tokenizer has no vocabulary",
        ),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json.*JSON"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "an adapter beside the weights"),
    ],
    ids=["tokenizer", "config", "adapter"],
)
def test_teacher_without_a_part_is_refused(kind, damage, words, models, tmp_path):
    shutil.copytree(models / "labels-1", tmp_path / "teacher")
    damage(tmp_path / "teacher")
    with pytest.raises(BadInput, match=rf"grid\.yaml:4: teachers\.big\.model: .*{words}"):
        check(tmp_path, kind, tmp_path / "teacher")


def test_revision_that_the_hub_does_not_have_is_refused(tmp_path, monkeypatch):
    def download(*_, **__):
        raise RevisionNotFoundError("404", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(BadInput, match=r"grid\.yaml:4: teachers\.big\.model: some/teacher: .* revision abc"):
        check(tmp_path, "cross_encoder", "some/teacher", ", revision: abc")


def test_teacher_is_unchecked_where_the_hub_cannot_be_reached(tmp_path, monkeypatch):
    def download(*_, **__):
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    (note,) = check(tmp_path, "cross_encoder", "some/teacher")
    assert note.startswith("  teacher big: unchecked; some/teacher: no such folder")
    assert "no connection" in note
