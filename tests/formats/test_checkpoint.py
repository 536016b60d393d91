"""Checkpoints are found, checked and described."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from lwr.common.errors import BadInput
from lwr.formats.checkpoint import (
    check_weights,
    count_layers,
    describe_checkpoint,
    fetch_checkpoint,
    find_local_folder,
    weights_fingerprint,
)


@pytest.fixture
def folder(tmp_path):
    """Write a checkpoint of 4 layers with a few weights."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert", "num_hidden_layers": 4}')
    save_file({"weight": np.arange(12, dtype=np.float32)}, folder / "model.safetensors")
    return folder


def test_path_and_package_are_local(folder, monkeypatch):
    (folder.parent / "my_package").mkdir()
    (folder.parent / "my_package/__init__.py").touch()
    folder.rename(folder.parent / "my_package/model")
    monkeypatch.syspath_prepend(folder.parent)
    for model in (str(folder.parent / "my_package/model"), "package:my_package/model"):
        assert find_local_folder(model) == folder.parent / "my_package/model"
        assert fetch_checkpoint(model, None) == folder.parent / "my_package/model"


def test_hub_id_is_not_local():
    assert find_local_folder("someone/some-model") is None


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("package:no_such_package/model", "no_such_package"),
        ("package:", "''"),
        ("./nowhere", r"config\.json"),
        ("a/b/c", r"config\.json"),
    ],
)
def test_missing_local_checkpoint_is_reported(model, says):
    with pytest.raises(BadInput, match=says):
        find_local_folder(model)


def test_layers_are_counted_also_in_a_text_config(folder):
    assert count_layers(str(folder)) == 4
    (folder / "config.json").write_text(json.dumps({"text_config": {"num_hidden_layers": 7}}))
    assert count_layers(str(folder)) == 7


def test_config_without_layers_is_refused(folder):
    (folder / "config.json").write_text('{"model_type": "resnet"}')
    with pytest.raises(BadInput, match=r"config\.json.*num_hidden_layers"):
        count_layers(str(folder))


def test_truncated_weights_are_refused(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(BadInput, match=r"model\.safetensors: damaged"):
        check_weights(folder)


def test_fingerprint_changes_with_the_weights(folder):
    before = weights_fingerprint(folder)
    assert weights_fingerprint(folder) == before
    save_file({"weight": np.arange(12, dtype=np.float32) + 1}, folder / "model.safetensors")
    assert weights_fingerprint(folder) != before


def test_description_holds_the_used_layers(folder):
    description = describe_checkpoint(str(folder), None, 3)
    assert description == {
        "model": str(folder),
        "revision": None,
        "model_type": "bert",
        "layers": 3,
        "fingerprint": weights_fingerprint(folder),
    }
    assert describe_checkpoint(str(folder), None, None)["layers"] == 4


def test_more_layers_than_the_checkpoint_has_are_refused(folder):
    with pytest.raises(BadInput, match=r"num_layers is 5.*4 layers"):
        describe_checkpoint(str(folder), None, 5)


def test_checkpoint_without_safetensors_is_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BadInput, match="safetensors"):
        describe_checkpoint(str(folder), None, None)
