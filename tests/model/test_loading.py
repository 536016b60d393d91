"""Tests of loading base models: complete, cut to their first blocks, or refused."""

from __future__ import annotations

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from lwr.common.errors import BadInput
from lwr.config.model import BaseModelConfig
from lwr.model.layer_hooks import find_layer_stack
from lwr.model.loading import load_base_model, set_dropout
from lwr.model.prompt import yes_token

CUT = ["llama", "qwen2", "gemma3_text", "qwen3_5_text", "lfm2", "bert", "modernbert"]


@pytest.mark.parametrize("architecture", CUT)
@torch.no_grad()
def test_cut_model_equals_first_blocks_of_full_model(architecture, tmp_path):
    folder = str(tiny.save(architecture, tmp_path))
    full, cut = (load_base_model(BaseModelConfig(model=folder, num_layers=n)).backbone for n in (None, 2))
    ids = torch.randint(3, tiny.VOCABULARY, (2, 9))
    features = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    full_states, cut_states = (tiny.normed_states(b, [1, 2], **features) for b in (full, cut))
    assert [find_layer_stack(b).num_layers for b in (full, cut)] == [tiny.LAYERS, 2]
    assert cut.config.num_hidden_layers == 2
    for expected, actual in zip(full_states, cut_states, strict=True):
        assert torch.equal(actual, expected)


# The last two tie their vocabulary head to the embeddings.
@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "lfm2"])
def test_yes_row_is_read_from_the_vocabulary_head(architecture, tmp_path):
    folder = tiny.save(architecture, tmp_path)
    loaded = load_base_model(BaseModelConfig(model=str(folder)), head="vocabulary")
    weights = load_file(folder / "model.safetensors")
    vocabulary = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    assert torch.equal(loaded.yes_row, vocabulary[yes_token(loaded.tokenizer)])
    assert loaded.backbone.get_output_embeddings() is None
    assert not loaded.backbone.training


def test_yes_row_is_float32_with_bfloat16_weights(tmp_path):
    base = BaseModelConfig(model=str(tiny.save("llama", tmp_path)), dtype="bfloat16")
    loaded = load_base_model(base, head="vocabulary")
    assert {p.dtype for p in loaded.backbone.parameters()} == {torch.bfloat16}
    assert loaded.yes_row.dtype == torch.float32


@pytest.mark.parametrize("with_weights", [True, False])
def test_adapter_in_a_base_model_is_refused(with_weights, tmp_path):
    folder = tiny.save("llama", tmp_path)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    if not with_weights:
        (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"adapter_config\.json.*merge"):
        load_base_model(BaseModelConfig(model=str(folder)))


def test_attention_that_no_package_provides_is_refused(tmp_path):
    base = BaseModelConfig(model=str(tiny.save("llama", tmp_path)), attention="flash_attention_2")
    with pytest.raises(ValueError, match=r"flash_attention_2.*sdpa"):
        load_base_model(base)


def test_pickled_weights_are_refused(tmp_path):
    folder = tiny.save("llama", tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="safetensors"):
        load_base_model(BaseModelConfig(model=str(folder)))


def test_missing_tensor_is_refused(tmp_path):
    folder = tiny.save("llama", tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 tensors.*layers\.2\.mlp\.up_proj\.weight"):
        load_base_model(BaseModelConfig(model=str(folder)))


def test_missing_pooler_is_accepted(tmp_path):
    folder = tiny.save("bert", tmp_path)
    weights = load_file(folder / "model.safetensors")
    kept = {name: w for name, w in weights.items() if not name.startswith("pooler.")}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    backbone = load_base_model(BaseModelConfig(model=str(folder))).backbone
    assert find_layer_stack(backbone).num_layers == tiny.LAYERS


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere.*config\.json"):
        load_base_model(BaseModelConfig(model=str(tmp_path / "nowhere")))


@pytest.mark.parametrize("architecture", ["bert", "xlm-roberta", "qwen2", "gemma3_text", "llama"])
def test_checkpoint_without_the_files_of_its_tokenizer_is_refused(architecture, tmp_path):
    folder = tiny.save(architecture, tmp_path)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(BadInput, match=r"its tokenizer (has no vocabulary|cannot be read)"):
        load_base_model(BaseModelConfig(model=str(folder)))


def test_model_missing_from_disk_and_hub_is_named(monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("no route\nand a long story")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(ValueError, match=r"some/model: .*revision abc.*no route"):
        load_base_model(BaseModelConfig(model="some/model", revision="abc"))


@pytest.mark.parametrize("architecture", sorted({*CUT} - {"lfm2"}))  # lfm2 has no dropout
@torch.no_grad()
def test_set_dropout_changes_training_mode(architecture, tmp_path):
    backbone = load_base_model(BaseModelConfig(model=str(tiny.save(architecture, tmp_path)))).backbone.train()
    ids = torch.randint(3, tiny.VOCABULARY, (2, 9))

    def differs() -> bool:
        once, again = (backbone(input_ids=ids).last_hidden_state for _ in range(2))
        return not torch.equal(once, again)

    set_dropout(backbone, 0.5)
    assert differs()
    set_dropout(backbone, 0.0)
    assert not differs()
