"""An untrained reranker, and a stub of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import pytest
import tiny
from huggingface_hub.utils import filter_repo_objects

import lwr.export.hub_upload
from lwr.config.model import BaseModelConfig
from lwr.model.reranker import LayerwiseReranker


@pytest.fixture(scope="session")
def build_reranker() -> Callable[..., LayerwiseReranker]:
    """Return a function that builds an untrained BERT with heads at layers 2 to 4, which names `base` as its base."""

    def build(base: str | None = "owner/tiny-base") -> LayerwiseReranker:
        revision = None if base is None or base.startswith("package:") else "0" * 40
        return LayerwiseReranker(
            tiny.backbone("bert"),
            tiny.tokenizer(encoder=True),
            start_layer=2,
            query_max_len=16,
            passage_max_len=48,
            base=BaseModelConfig(model=base, revision=revision) if base else None,
        )

    return build


@pytest.fixture
def hub(monkeypatch):
    """Replace the hub's API by a stub that records calls, and the bytes of the last uploaded files."""
    got = SimpleNamespace(calls=[], files={}, token=None, error=None)

    class Hub:
        def __init__(self, token=None):
            got.token = token

        def create_repo(self, repo_id, **how):
            if got.error:
                raise got.error
            got.calls.append(("create_repo", repo_id, how))

        def create_branch(self, repo_id, **how):
            got.calls.append(("create_branch", repo_id, how))

        def upload_folder(self, *, repo_id, folder_path, allow_patterns, **how):
            got.calls.append(("upload_folder", repo_id, how))
            names = [file.name for file in Path(folder_path).iterdir()]
            kept = filter_repo_objects(names, allow_patterns=allow_patterns)
            got.files = {name: (Path(folder_path) / name).read_bytes() for name in kept}
            return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

    monkeypatch.setattr(lwr.export.hub_upload, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return got
