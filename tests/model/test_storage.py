"""Tests of saving and loading: files, scores after loading, and refused folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from architectures import ARCHITECTURES
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lwr.common.errors import BadInput
from lwr.config.model import BaseModelConfig, PromptTemplate
from lwr.config.training import LoraConfig
from lwr.model.batching import pad
from lwr.model.linear.lora import add_lora, merge_lora
from lwr.model.loading import load_base_model
from lwr.model.reranker import LayerwiseReranker
from lwr.model.storage import read_stored_exits

PAIRS = [("how is a string decoded?", "Decode a JSON document from a string."), ("who?", "Raise ValueError.")]


@torch.no_grad()
def scores(model: LayerwiseReranker) -> Tensor:
    """Return the scores [exits, pairs]."""
    return torch.stack(model.eval().encode(pad(model.prompt.rows(PAIRS), model.tokenizer)))


def load(folder: Path, **options) -> LayerwiseReranker:
    return LayerwiseReranker.from_pretrained(folder, device="cpu", **options)


def untrained(checkpoint: Path, **options) -> LayerwiseReranker:
    """Put heads on a base model."""
    base = BaseModelConfig(model=str(checkpoint))
    loaded = load_base_model(base)
    return LayerwiseReranker(loaded.backbone, loaded.tokenizer, start_layer=2, base=base, **options)


def perturb(model: LayerwiseReranker) -> LayerwiseReranker:
    """Change every trainable weight, as training does."""
    for p in model.parameters():
        if p.requires_grad:
            nn.init.normal_(p.data, p.data.mean().item(), 0.1)
    return model


@pytest.fixture
def llama(tmp_path) -> Path:
    return tiny.save("llama", tmp_path / "base")


@pytest.fixture
def adapter(llama, tmp_path) -> Path:
    """Save an adapter on `llama`."""
    model = untrained(llama)
    add_lora(model, LoraConfig(rank=4, alpha=8))
    perturb(model).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


# --- the round trip ------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3_text", "lfm2", "bert", "modernbert"])
@pytest.mark.parametrize("shared_head", [False, True], ids=["per_exit", "shared"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_loaded_reranker_scores_bit_for_bit_as_saved(architecture, shared_head, lora, tmp_path):
    model = untrained(tiny.save(architecture, tmp_path / "base"), shared_head=shared_head)
    if lora:
        add_lora(model, LoraConfig(rank=4, alpha=8))
    perturb(model).save_pretrained(tmp_path / "saved")
    loaded = load(tmp_path / "saved")
    assert len(loaded.heads) == (1 if shared_head else tiny.LAYERS - 1)
    assert not loaded.training
    assert torch.equal(scores(loaded), scores(model))


@pytest.mark.parametrize("own_norms", [False, True])
def test_heads_at_some_layers_are_saved(llama, own_norms, tmp_path):
    model = untrained(llama, head_every=9, own_norms=own_norms)
    perturb(model).save_pretrained(tmp_path / "saved")
    assert set(load_file(tmp_path / "saved/heads.safetensors")) >= {"layer_2", "layer_4"}
    assert "layer_3" not in load_file(tmp_path / "saved/heads.safetensors")
    assert read_stored_exits(str(tmp_path / "saved")) == [2, 4]
    assert torch.equal(scores(load(tmp_path / "saved")), scores(model))


def test_folder_without_the_newer_keys_has_a_head_at_every_layer(llama, tmp_path):
    untrained(llama).save_pretrained(tmp_path / "saved")
    file = tmp_path / "saved/lwr.json"
    description = json.loads(file.read_text())
    file.write_text(
        json.dumps({k: v for k, v in description.items() if k not in ("head_every", "own_norms")})
    )
    assert load(tmp_path / "saved").exits == read_stored_exits(str(tmp_path / "saved")) == [2, 3, 4]


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "modernbert"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_own_norms_are_saved(architecture, lora, tmp_path):
    model = untrained(tiny.save(architecture, tmp_path / "base"), own_norms=True)
    if lora:
        add_lora(model, LoraConfig(rank=4, alpha=8))
    perturb(model).save_pretrained(tmp_path / "saved")
    loaded = load(tmp_path / "saved")
    assert torch.equal(scores(loaded), scores(model))
    assert len({tuple(norm.weight.tolist()) for norm in loaded.norms}) == len(model.exits)
    halved = load(tmp_path / "saved", dtype=torch.bfloat16)
    assert {p.dtype for p in halved.norms.parameters()} == {torch.float32}
    torch.testing.assert_close(scores(halved), scores(model), atol=0.3, rtol=0.1)


def test_norm_that_is_missing_is_named(llama, tmp_path):
    untrained(llama, own_norms=True).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "heads.safetensors")
    del tensors["layer_3.norm.weight"]
    save_file(tensors, tmp_path / "heads.safetensors")
    with pytest.raises(BadInput, match=r"heads\.safetensors has a norm \{\} of layer 3"):
        load(tmp_path)


@pytest.mark.parametrize("architecture", ["llama", "qwen3_5_text", "bert"])
def test_merged_reranker_scores_without_its_base(architecture, tmp_path):
    model = untrained(tiny.save(architecture, tmp_path / "base"))
    plain = scores(model)
    add_lora(model, LoraConfig(rank=4, alpha=8))
    before = scores(perturb(model))
    assert (before - plain).abs().max() > 0.1, "the adapter must matter for this test to mean anything"
    merge_lora(model)
    model.save_pretrained(tmp_path / "merged")
    shutil.rmtree(tmp_path / "base")  # the merged reranker does not need it
    torch.testing.assert_close(scores(load(tmp_path / "merged")), before, atol=1e-5, rtol=1e-5)


def test_all_options_are_saved(tmp_path):
    template = PromptTemplate(
        prefix="<s>", query="Q {query}", between=" ", passage="P {passage}", after=["?"]
    )
    model = untrained(
        tiny.save("llama", tmp_path / "base"),
        template=template,
        pooling="mean",
        query_max_len=9,
        passage_max_len=21,
    )
    model.save_pretrained(tmp_path / "saved")
    loaded = load(tmp_path / "saved")
    assert loaded.exits == [2, 3, 4]
    assert loaded.pooling == "mean"
    assert loaded.prompt.template == template
    assert (loaded.prompt.query_max_len, loaded.prompt.passage_max_len) == (9, 21)
    assert loaded.prompt.rows(PAIRS) == model.prompt.rows(PAIRS)


def test_full_reranker_is_saved_again_without_its_base(llama, tmp_path):
    untrained(llama).save_pretrained(tmp_path / "saved")
    shutil.rmtree(llama)
    load(tmp_path / "saved").save_pretrained(tmp_path / "again")
    assert torch.equal(scores(load(tmp_path / "again")), scores(load(tmp_path / "saved")))


@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_backbone_loads_in_bfloat16_with_float32_heads(kind, llama, adapter, tmp_path):
    untrained(llama).save_pretrained(tmp_path / "full")
    folder = tmp_path / kind
    model = load(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in model.backbone.parameters()} == {torch.bfloat16}
    assert {head.dtype for head in model.heads} == {torch.float32}
    torch.testing.assert_close(scores(model), scores(load(folder)), atol=0.2, rtol=0.1)


# --- what is written -----------------------------------------------------------------------------------


def test_only_safetensors_and_text_are_written(llama, adapter, tmp_path):
    untrained(llama).save_pretrained(tmp_path / "full")
    for folder in (tmp_path / "full", adapter):
        suffixes = {file.suffix for file in folder.rglob("*") if file.is_file()}
        assert suffixes <= {".safetensors", ".json", ".md", ".jinja"}, suffixes
        assert (folder / "heads.safetensors").is_file()


def test_saved_adapter_has_no_backbone(adapter):
    assert not (adapter / "model.safetensors").exists()
    tensors = load_file(adapter / "adapter_model.safetensors")
    assert all("lora_" in name for name in tensors)


def test_heads_are_named_by_layer(llama, tmp_path):
    untrained(llama).save_pretrained(tmp_path / "own")
    untrained(llama, shared_head=True).save_pretrained(tmp_path / "shared")
    assert set(load_file(tmp_path / "own" / "heads.safetensors")) == {"layer_2", "layer_3", "layer_4"}
    assert set(load_file(tmp_path / "shared" / "heads.safetensors")) == {"shared"}


# --- what is refused -----------------------------------------------------------------------------------


def test_adapter_on_changed_base_is_refused(llama, adapter):
    weights = llama / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.embed_tokens.weight"] += 1e-3
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="is an adapter for") as error:
        load(adapter)
    assert str(llama) in str(error.value)
    assert str(adapter) in str(error.value)


def test_adapter_on_base_of_another_shape_is_refused(llama, adapter, tmp_path):
    shutil.rmtree(llama)
    tiny.save("bert", llama)
    with pytest.raises(ValueError, match="is an adapter for"):
        load(adapter)


def test_adapter_without_base_is_not_saved(tmp_path):
    model = LayerwiseReranker(tiny.backbone("llama"), tiny.tokenizer(encoder=False), start_layer=2)
    add_lora(model, LoraConfig(rank=2))
    with pytest.raises(ValueError, match=r"adapter.*base"):
        model.save_pretrained(tmp_path / "saved")


def test_adapter_whose_lwr_json_names_no_base_is_refused(adapter):
    description = json.loads((adapter / "lwr.json").read_text())
    (adapter / "lwr.json").write_text(json.dumps(description | {"base": None}))
    with pytest.raises(ValueError, match=r"lwr\.json.*adapter.*base"):
        load(adapter)


def test_missing_heads_file_is_refused(adapter):
    (adapter / "heads.safetensors").unlink()
    with pytest.raises(ValueError, match=r"heads\.safetensors is missing"):
        load(adapter)


def test_missing_head_is_named(adapter):
    heads = load_file(adapter / "heads.safetensors")
    del heads["layer_3"]
    save_file(heads, adapter / "heads.safetensors")
    with pytest.raises(ValueError, match=r"heads\.safetensors.*layer_3.*layer_2.*layer_4"):
        load(adapter)


def test_pickled_weights_are_refused(llama, tmp_path):
    untrained(llama).save_pretrained(tmp_path / "saved")
    weights = tmp_path / "saved" / "model.safetensors"
    torch.save(load_file(weights), tmp_path / "saved" / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(BadInput, match=r"saved: no model\.safetensors.*pickled"):
        load(tmp_path / "saved")


def test_pickled_adapter_weights_are_refused(adapter):
    weights = adapter / "adapter_model.safetensors"
    torch.save(load_file(weights), adapter / "adapter_model.bin")
    weights.unlink()
    with pytest.raises((ValueError, OSError), match="safetensors"):
        load(adapter)


def test_plain_checkpoint_is_refused(llama):
    with pytest.raises(ValueError, match=r"no lwr\.json"):
        load(llama)


def test_model_with_adapter_is_refused(llama):
    model = untrained(llama)
    add_lora(model, LoraConfig(rank=2))
    with pytest.raises(ValueError, match="add_lora"):
        LayerwiseReranker(model.backbone, model.tokenizer, start_layer=2)


def test_lwr_json_describes_the_reranker(adapter, llama):
    description = json.loads((adapter / "lwr.json").read_text())
    assert description["base"]["model"] == str(llama)
    assert description["adapter"] is True
    assert (description["depth"], description["start_layer"]) == (tiny.LAYERS, 2)


# --- attention -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_model_is_loaded_with_the_attention_of_its_training(attention, llama, tmp_path):
    base = BaseModelConfig(model=str(llama), attention=attention)
    loaded = load_base_model(base)
    model = LayerwiseReranker(loaded.backbone, loaded.tokenizer, start_layer=2, base=base)
    model.save_pretrained(tmp_path / "model")
    assert load(tmp_path / "model").attention == attention
    assert torch.equal(scores(load(tmp_path / "model")), scores(model))


def test_eager_attention_replaces_sdpa_in_a_class_without_it(tmp_path):
    (deberta,) = [each for each in ARCHITECTURES if each.name == "deberta-v2"]
    model = untrained(deberta.save(tmp_path / "base"))
    model.save_pretrained(tmp_path / "model")
    assert [model.attention, load(tmp_path / "model").attention] == ["eager", "eager"]


def test_lwr_json_without_attention_is_read_with_sdpa(llama, tmp_path):
    untrained(llama).save_pretrained(tmp_path / "model")
    file = tmp_path / "model/lwr.json"
    description = json.loads(file.read_text())
    for name in ("sdpa", "flash_attention_2"):  # kernels for GPUs are not what every machine has
        file.write_text(json.dumps(description | {"attention": name}))
        assert load(tmp_path / "model").attention == "sdpa"
    del description["attention"]
    file.write_text(json.dumps(description))
    assert load(tmp_path / "model").attention == "sdpa"


def test_adapter_on_gpt2_scores_the_same_after_loading(tmp_path):
    (gpt2,) = [each for each in ARCHITECTURES if each.name == "gpt2"]
    model = untrained(gpt2.save(tmp_path / "base"))
    add_lora(model, LoraConfig(rank=4, alpha=8))
    perturb(model).save_pretrained(tmp_path / "model")
    assert torch.allclose(scores(load(tmp_path / "model")), scores(model), atol=1e-5)
