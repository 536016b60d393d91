"""A folder with the workflow and the files that its grids name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def workflow_folder(tmp_path_factory) -> Path:
    """Return a folder, with a space in its path, that the workflow can run in."""
    folder = tmp_path_factory.mktemp("a workflow")
    for part in ("workflow", "config"):
        shutil.copytree(ROOT / part, folder / part)
    for name in ("llama", "bert"):
        tiny.save(name, folder / f"checkpoints/tiny-{name}")
    for dataset in ("cranfield", "msmarco", "scifact"):
        (folder / "data" / dataset).mkdir(parents=True)
    pretrained = folder / "checkpoints/gemma3-270m"
    pretrained.mkdir()
    (pretrained / "config.json").write_text('{"num_hidden_layers": 18}', encoding="utf-8")
    return folder
