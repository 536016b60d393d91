"""Base models from disk: whole, cut to their first blocks, or refused."""

from __future__ import annotations

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from lwr.config.model import BaseModelConfig
from lwr.model.layer_hooks import find_layer_stack
from lwr.model.loading import load_base_model, set_dropout
from lwr.model.prompt import yes_token

CUT = ["llama", "qwen2", "gemma3_text", "qwen3_5_text", "lfm2", "bert", "modernbert"]


@pytest.mark.parametrize("architecture", CUT)
@torch.no_grad()
def test_a_cut_model_is_the_first_blocks_of_the_full_one(architecture, tmp_path):
    folder = str(tiny.save(architecture, tmp_path))
    full, cut = (load_base_model(BaseModelConfig(model=folder, num_layers=n)).backbone for n in (None, 2))
    ids = torch.randint(3, tiny.VOCABULARY, (2, 9))
    features = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    of_full, of_cut = (tiny.normed_states(b, [1, 2], **features) for b in (full, cut))
    assert [find_layer_stack(b).num_layers for b in (full, cut)] == [tiny.LAYERS, 2]
    assert cut.config.num_hidden_layers == 2
    for in_full, in_cut in zip(of_full, of_cut, strict=True):
        assert torch.equal(in_full, in_cut)


@pytest.mark.parametrize(
    "architecture", ["llama", "gemma3_text", "lfm2"]
)  # the last two tie the vocabulary's rows
def test_the_row_of_yes(architecture, tmp_path):
    folder = tiny.save(architecture, tmp_path)
    loaded = load_base_model(BaseModelConfig(model=str(folder)), with_vocabulary=True)
    weights = load_file(folder / "model.safetensors")
    vocabulary = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    assert torch.equal(loaded.yes_row, vocabulary[yes_token(loaded.tokenizer)])
    assert loaded.backbone.get_output_embeddings() is None
    assert not loaded.backbone.training


def test_frozen_weights_in_bfloat16_leave_the_row_of_yes_in_float32(tmp_path):
    base = BaseModelConfig(model=str(tiny.save("llama", tmp_path)), dtype="bfloat16")
    loaded = load_base_model(base, with_vocabulary=True)
    assert {p.dtype for p in loaded.backbone.parameters()} == {torch.bfloat16}
    assert loaded.yes_row.dtype == torch.float32


def test_pickled_weights_are_refused(tmp_path):
    folder = tiny.save("llama", tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="safetensors"):
        load_base_model(BaseModelConfig(model=str(folder)))


def test_a_checkpoint_that_lacks_a_tensor_is_refused(tmp_path):
    folder = tiny.save("llama", tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 tensors, layers\.2\.mlp\.up_proj\.weight for one"):
        load_base_model(BaseModelConfig(model=str(folder)))


def test_a_checkpoint_without_its_pooler_is_enough(tmp_path):
    folder = tiny.save("bert", tmp_path)
    weights = load_file(folder / "model.safetensors")
    kept = {name: w for name, w in weights.items() if not name.startswith("pooler.")}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    assert (
        find_layer_stack(load_base_model(BaseModelConfig(model=str(folder))).backbone).num_layers
        == tiny.LAYERS
    )


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere holds no config\.json"):
        load_base_model(BaseModelConfig(model=str(tmp_path / "nowhere")))


def test_a_model_that_is_neither_here_nor_on_the_hub_is_named(monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("no route\nand a long story")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(ValueError, match=r"some/model: no such folder here.*at revision abc \(no route\)"):
        load_base_model(BaseModelConfig(model="some/model", revision="abc"))


@pytest.mark.parametrize("architecture", sorted({*CUT} - {"lfm2"}))  # which has none, ever
@torch.no_grad()
def test_dropout_is_what_is_asked_for_in_training(architecture, tmp_path):
    backbone = load_base_model(BaseModelConfig(model=str(tiny.save(architecture, tmp_path)))).backbone.train()
    ids = torch.randint(3, tiny.VOCABULARY, (2, 9))

    def differs() -> bool:
        once, again = (backbone(input_ids=ids).last_hidden_state for _ in range(2))
        return not torch.equal(once, again)

    set_dropout(backbone, 0.5)
    assert differs()
    set_dropout(backbone, 0.0)
    assert not differs()
