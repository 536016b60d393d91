"""A reranker in a folder: weights or adapter, heads, tokenizer, and lwr.json, which says how they go together."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from lwr.common.errors import BadInput
from lwr.common.json_lines import read_json
from lwr.config.model import BaseModelConfig, PromptTemplate
from lwr.formats.checkpoint import check_weights, fetch_checkpoint, read_config, weights_fingerprint
from lwr.model.loading import check_missing, load_base_model, load_tokenizer, load_weights
from lwr.model.minicpm import has_heads, is_minicpm


def write(
    folder: Path,
    backbone: nn.Module,
    heads: Mapping[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    base: BaseModelConfig | None,
    about: Mapping[str, Any],
) -> None:
    """heads: `shared`, or `layer_k` for each exit. about: the rest of lwr.json.

    Raises ValueError where an adapter has no base to name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    adapter = isinstance(backbone, PeftModel)
    if adapter and base is None:
        raise ValueError("an adapter must name its base model: construct with base=, or merge() first")
    own = {name: head.detach().cpu().contiguous() for name, head in heads.items()}
    with convert_write_errors(folder):
        backbone.save_pretrained(folder)
        backbone.config.save_pretrained(folder)  # an adapter alone would not write it
        save_file(own, folder / "heads.safetensors")
    tokenizer.save_pretrained(folder)
    origin = {
        "lwr": version("lwr"),
        "base": base and base.slice(),
        "adapter": adapter,
        "base_fingerprint": weights_fingerprint(fetch_checkpoint(base.model, base.revision))
        if adapter
        else None,
    }
    (folder / "lwr.json").write_text(json.dumps({**origin, **about}, indent=2) + "\n", encoding="utf-8")


@contextmanager
def convert_write_errors(folder: Path) -> Iterator[None]:
    """Where weights cannot be written, as on a full disk: OSError, which safetensors has an error of its own for."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{folder}: weights cannot be written ({error})") from error


def read_stored_exits(model: str, revision: str | None = None) -> list[int]:
    """The layers with a head, without a look at weights: of a hub id only the descriptions are downloaded.

    Raises BadInput where it is no reranker.
    """
    folder = fetch_checkpoint(model, revision, ["lwr.json", "config.json"])
    if (folder / "lwr.json").is_file():
        about = read_about(folder)
        return list(range(about["start_layer"], about["depth"] + 1))
    _check_upstream(folder, model)
    config = read_config(folder)
    return list(range(config["start_layer"], config["num_hidden_layers"] + 1))


@dataclass(frozen=True)
class StoredReranker:
    """What a LayerwiseReranker is made of."""

    backbone: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    adapter: Path | None  # folder of an adapter for the backbone, to be put on once it is wrapped
    options: dict[str, Any]  # of the constructor


def _check_heads(folder: Path, heads: Mapping[int, Tensor], backbone: PreTrainedModel) -> None:
    hidden = backbone.config.get_text_config().hidden_size
    for layer, head in heads.items():
        if head.shape != (hidden,):
            raise BadInput(
                f"{folder / 'heads.safetensors'}: the head of layer {layer} is {list(head.shape)}, but states are "
                f"[{hidden}]: another model's; train or fetch it again"
            )


def read(model: str, revision: str | None, dtype: torch.dtype, attention: str) -> StoredReranker:
    """A folder that `write` wrote, or an upstream layerwise checkpoint.

    Raises BadInput where a part is missing or damaged, or an adapter meets another base than it was trained on.
    """
    folder = fetch_checkpoint(model, revision)
    if not (folder / "lwr.json").is_file():
        return _read_upstream(model, revision, dtype, attention)
    about = read_about(folder)
    check_weights(folder)
    base = BaseModelConfig(**about["base"]) if about["base"] else None
    tokenizer = load_tokenizer(folder)
    as_written = ("start_layer", "pooling", "shared_head", "query_max_len", "passage_max_len")
    options = {name: about[name] for name in as_written} | {
        "initial_heads": _read_heads(folder, about),
        "template": PromptTemplate(**(about["template"] or {})),
    }
    if about["adapter"]:
        _part(folder, "adapter_model.safetensors")
        _same_base(folder, base, about["base_fingerprint"])
        backbone = load_base_model(base.model_copy(update={"attention": attention})).backbone
    else:
        backbone, missing = load_weights(AutoModel, folder, dtype=dtype, attn_implementation=attention)
        check_missing(folder, missing)
    _check_heads(folder, options["initial_heads"], backbone)
    return StoredReranker(backbone, tokenizer, folder if about["adapter"] else None, options | {"base": base})


def read_about(folder: Path) -> dict[str, Any]:
    """lwr.json. Raises BadInput."""
    kinds = {"start_layer": int, "depth": int, "shared_head": bool, "adapter": bool, "pooling": str}
    kinds |= {"query_max_len": int, "passage_max_len": int}
    about = read_json(folder / "lwr.json", kinds)
    if missing := [name for name in ("base", "base_fingerprint", "template") if name not in about]:
        raise BadInput(
            f"{folder / 'lwr.json'}: field {missing[0]!r} is missing; train or fetch the model again"
        )
    return about


def _read_upstream(model: str, revision: str | None, dtype: torch.dtype, attention: str) -> StoredReranker:
    _check_upstream(fetch_checkpoint(model, revision), model)
    base = BaseModelConfig(model=model, revision=revision, attention=attention)
    loaded = load_base_model(base)
    shared = all(torch.equal(head, loaded.heads[max(loaded.heads)]) for head in loaded.heads.values())
    options = {"start_layer": min(loaded.heads), "shared_head": shared, "initial_heads": loaded.heads}
    return StoredReranker(loaded.backbone.to(dtype), loaded.tokenizer, None, options | {"base": base})


def _check_upstream(folder: Path, model: str) -> None:
    if not is_minicpm(folder):
        raise BadInput(f"{model}: no lwr.json; give a folder that save_pretrained wrote")
    if not has_heads(read_config(folder)):
        raise BadInput(f"{model}: a raw language model without relevance heads; train it first")


def _part(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise BadInput(
            f"{folder}: {name} is missing; without it a reranker scores nothing (pickles are not read)"
        )
    return folder / name


def _read_heads(folder: Path, about: dict[str, Any]) -> dict[int, Tensor]:
    file = _part(folder, "heads.safetensors")
    tensors = load_file(file)
    exits = range(about["start_layer"], about["depth"] + 1)
    names = {k: "shared" if about["shared_head"] else f"layer_{k}" for k in exits}
    missing = sorted(set(names.values()) - set(tensors))
    if missing:
        raise BadInput(f"{file}: no head named {missing}; it holds {sorted(tensors)}")
    return {k: tensors[name] for k, name in names.items()}


def _same_base(folder: Path, base: BaseModelConfig, expected: str) -> None:
    if weights_fingerprint(fetch_checkpoint(base.model, base.revision)) != expected:
        raise BadInput(
            f"{folder} is an adapter for {base.model} (revision {base.revision}), but what is there now has other "
            "weights than it was trained on; put that checkpoint back"
        )
