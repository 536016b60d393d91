"""Write and read a reranker in a folder: weights or adapter, heads, tokenizer, and lwr.json with its options.

The file of the heads also has the own norms of exits. A reranker that has weights of fused scores also has fusion.json,
one that has a calibration calibration.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from lwr.common.errors import BadInput, missing_extra
from lwr.common.exits import describe_layers, exit_name
from lwr.common.json_lines import write_json
from lwr.common.results_tree import find_calibration_of_grid
from lwr.config.model import Attention, BaseModelConfig, PromptTemplate
from lwr.formats.calibration import FILE_NAME as CALIBRATION_FILE
from lwr.formats.calibration import Calibration, calibration_record, read_calibration
from lwr.formats.checkpoint import (
    check_weights,
    exits_of_description,
    fetch_checkpoint,
    read_config,
    weights_fingerprint,
)
from lwr.formats.fusion import FILE_NAME as FUSION_FILE
from lwr.formats.fusion import Fusion, fusion_record, read_fusion
from lwr.model.loading import check_missing, load_base_model, load_tokenizer, load_weights, read_model_config
from lwr.model.sources.lightweight import TEMPLATE, is_lightweight, read_score_cap
from lwr.model.sources.minicpm import has_heads, is_minicpm
from lwr.model.sources.stored import check_file, is_stored_reranker, read_description, read_stored_heads

STORED_OPTIONS = (
    *("start_layer", "head_every", "pooling", "shared_head", "own_norms"),
    *("query_max_len", "passage_max_len"),
)
"""The keys of lwr.json that are constructor arguments of `LayerwiseReranker` as they are."""


# --- Writing ---


def write_reranker(
    folder: Path,
    backbone: PreTrainedModel,
    heads: Mapping[str, Tensor],
    norms: Mapping[str, Mapping[str, Tensor]],
    tokenizer: PreTrainedTokenizerBase,
    base: BaseModelConfig | None,
    options: Mapping[str, Any],
    fusion: Fusion | None = None,
    calibration: Calibration | None = None,
) -> None:
    """Write a reranker into a folder.

    Args:
        folder: Made if it does not exist.
        backbone: With an adapter, only the adapter is written.
        heads: `shared`, or `layer_k` for each exit -> float32 [H].
        norms: `layer_k` for each exit with its own norm -> name of a tensor of the norm -> float32.
        tokenizer: The tokenizer.
        base: The checkpoint of the backbone.
        options: The other keys of lwr.json.
        fusion: The weights of fused scores.
        calibration: The lines that turn scores into probabilities.

    Raises:
        ValueError: The backbone has an adapter, but `base` is None.
        OSError: The weights cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    adapted = has_adapter(backbone)
    if adapted and base is None:
        raise ValueError(
            "an adapter must name its base model: construct with base=, or merge it (lwr.model.linear.lora.merge_lora)"
        )
    with convert_write_errors(folder):
        backbone.save_pretrained(folder)
        backbone.config.save_pretrained(folder)  # an adapter alone would not write it
        tensors = {
            **heads,
            **{f"{k}.norm.{name}": t for k, norm in norms.items() for name, t in norm.items()},
        }
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(tensors, folder / "heads.safetensors")
    tokenizer.save_pretrained(folder)
    origin = {
        "lwr": version("lwr"),
        "base": None if base is None else base.slice(),
        "adapter": adapted,
        "base_fingerprint": _fingerprint(base) if adapted and base is not None else None,
    }
    (folder / "lwr.json").write_text(json.dumps({**origin, **options}, indent=2) + "\n", encoding="utf-8")
    for name in (FUSION_FILE, CALIBRATION_FILE):
        (folder / name).unlink(missing_ok=True)  # of another reranker that the folder held
    if fusion is not None:
        write_json(folder / FUSION_FILE, fusion_record(fusion))
    if calibration is not None:
        write_json(folder / CALIBRATION_FILE, calibration_record(calibration))


def _fingerprint(base: BaseModelConfig) -> str:
    """Return a hash of the weights of a base model."""
    return weights_fingerprint(fetch_checkpoint(base.model, base.revision))


@contextmanager
def convert_write_errors(folder: Path) -> Iterator[None]:
    """Raise OSError if safetensors cannot write weights inside the block, for example to a full disk."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{folder}: weights cannot be written ({error})") from error


# --- Reading ---


def read_stored_exits(model: str, revision: str | None = None) -> list[int]:
    """Read the layers with a head of a stored reranker. No weights are read or downloaded.

    Raises:
        BadInput: There is no reranker.
    """
    folder = fetch_checkpoint(model, revision, ["lwr.json", "config.json"])
    if is_stored_reranker(folder):
        return exits_of_description(read_description(folder))
    _check_upstream(folder, model)
    config = read_config(folder)
    return list(range(config["start_layer"], config["num_hidden_layers"] + 1))


def read_stored_fusion(model: str, revision: str | None = None, file: Path | None = None) -> Fusion | None:
    """Read the weights of fused scores of a stored reranker; None if it has none. Its own weights are not read.

    Args:
        model: Folder or hub id.
        revision: Revision of a hub id.
        file: A file that `lwr fuse` wrote, instead of the reranker's fusion.json.

    Raises:
        BadInput: There is no reranker, or the weights cannot be read or are of other exits.
    """
    exits = read_stored_exits(model, revision)
    stored = fetch_checkpoint(model, revision, [FUSION_FILE, "config.json"]) / FUSION_FILE
    if file is None and not stored.is_file():
        return None
    return read_fusion_of(file or stored, exits)


def find_calibration(
    model: str, revision: str | None = None, results: Path | None = None
) -> Calibration | None:
    """Read the calibration of a stored reranker: its own, or that of its grid; None if there is none.

    Args:
        model: Folder or hub id.
        revision: Revision of a hub id.
        results: Folder of the grid's results; None: the one that the model lies in.

    Raises:
        BadInput: The calibration cannot be read.
    """
    folder = fetch_checkpoint(model, revision, [CALIBRATION_FILE, "config.json"])
    own = read_own_calibration(folder)
    if own is not None:
        return own
    file = find_calibration_of_grid(folder, results)
    return None if file is None else read_calibration(file)


def read_own_calibration(folder: Path) -> Calibration | None:
    """Read the calibration.json in the folder of a reranker; None if it has none. Raises BadInput."""
    file = folder / CALIBRATION_FILE
    return read_calibration(file) if file.is_file() else None


def read_fusion_of(file: Path, exits: Sequence[int]) -> Fusion:
    """Read weights of fused scores. Raises BadInput if they cannot be read or are of other exits."""
    fusion = read_fusion(file)
    if fusion.layers != list(exits):
        raise BadInput(
            f"{file}: has weights of layers {fusion.layers}, but the reranker's exits are "
            f"{describe_layers(exits)}; "
            "give the file that `lwr fuse` wrote for this reranker"
        )
    return fusion


@dataclass(frozen=True)
class StoredReranker:
    """The parts of a reranker that was read.

    Attributes:
        backbone: Without its adapter.
        tokenizer: The tokenizer.
        adapter: The folder of an adapter, to be applied to the backbone of the constructed reranker.
        norms: Layer -> name of a tensor -> float32, for the own norms of exits, to be loaded by `load_norm`.
        options: Keyword arguments of `LayerwiseReranker`.
    """

    backbone: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    adapter: Path | None
    norms: dict[int, dict[str, Tensor]]
    options: dict[str, Any]


def read_reranker(
    model: str, revision: str | None, dtype: torch.dtype, attention: Attention | None
) -> StoredReranker:
    """Read a folder that `write_reranker` wrote, or an upstream layerwise checkpoint.

    Args:
        model: A folder or an id on the Hugging Face hub.
        revision: The commit or branch of a hub id.
        dtype: The dtype of the backbone.
        attention: The name of an attention function of transformers; None: as in training, with `sdpa` in place of
            kernels that need a GPU and half precision.

    Raises:
        BadInput: A part is missing or damaged, or an adapter's base has other weights than it was trained on.
    """
    folder = fetch_checkpoint(model, revision)
    if not is_stored_reranker(folder):
        return _read_upstream(model, revision, dtype, attention or "sdpa")
    description = read_description(folder)
    attention = attention or _portable_attention(description.get("attention", "sdpa"))
    check_weights(folder)
    base = BaseModelConfig(**description["base"]) if description["base"] else None
    tokenizer = load_tokenizer(folder)
    heads = read_stored_heads(folder, description)
    if description["adapter"]:
        if base is None:
            raise BadInput(
                f"{folder / 'lwr.json'}: an adapter without a base model; train or fetch the model again"
            )
        if find_spec("peft") is None:
            raise missing_extra(f"{folder}: its adapter", "peft", "lora")
        check_file(folder, "adapter_model.safetensors")
        _check_base(folder, base, description["base_fingerprint"])
        backbone = load_base_model(base.model_copy(update={"attention": attention})).backbone
    else:
        backbone, missing = load_weights(AutoModel, folder, read_model_config(folder), dtype, attention)
        check_missing(folder, missing)
    _check_head_sizes(folder, heads, backbone)
    exits = exits_of_description(description)
    has_fusion = (folder / FUSION_FILE).is_file()
    options = {name: description[name] for name in STORED_OPTIONS} | {
        "score_cap": description.get("score_cap"),  # older folders lack it
        "fusion": read_fusion_of(folder / FUSION_FILE, exits) if has_fusion else None,
        "calibration": read_own_calibration(folder),
        "initial_heads": heads,
        "template": PromptTemplate(**(description["template"] or {})),
        "base": base,
    }
    adapter = folder if description["adapter"] else None
    norms = _read_norms(folder, exits) if description["own_norms"] else {}
    return StoredReranker(backbone, tokenizer, adapter, norms, options)


def _portable_attention(trained_with: str) -> Attention:
    """Return the attention that reads a model trained with another: the same one, where every machine has it."""
    return "eager" if trained_with == "eager" else "sdpa"


def _read_upstream(
    model: str, revision: str | None, dtype: torch.dtype, attention: Attention
) -> StoredReranker:
    """Read an upstream layerwise checkpoint."""
    folder = fetch_checkpoint(model, revision)
    _check_upstream(folder, model)
    base = BaseModelConfig(model=model, revision=revision, attention=attention)
    loaded = load_base_model(base)
    deepest_head = loaded.heads[max(loaded.heads)]
    options = {
        "start_layer": min(loaded.heads),
        "shared_head": all(torch.equal(head, deepest_head) for head in loaded.heads.values()),
        "initial_heads": loaded.heads,
        "base": base,
        "calibration": read_own_calibration(folder),
    }
    if is_lightweight(folder):
        options |= {"score_cap": read_score_cap(folder), "template": TEMPLATE}
    backbone = loaded.backbone.to(dtype)  # pyright: ignore[reportArgumentType] - the type of `to` lacks self
    return StoredReranker(backbone, loaded.tokenizer, None, {}, options)


def _check_upstream(folder: Path, model: str) -> None:
    """Raise BadInput if a folder without lwr.json does not hold an upstream layerwise checkpoint."""
    if is_lightweight(folder):
        return
    if not is_minicpm(folder):
        raise BadInput(f"{model}: no lwr.json; give a folder that save_pretrained wrote")
    if not has_heads(read_config(folder)):
        raise BadInput(f"{model}: a raw language model without relevance heads; train it first")


def _read_norms(folder: Path, exits: Sequence[int]) -> dict[int, dict[str, Tensor]]:
    """Read the own norm of each exit, as the tensors of its state."""
    tensors = load_file(folder / "heads.safetensors")
    prefixes = {k: f"{exit_name(k)}.norm." for k in exits}
    return {
        k: {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        for k, prefix in prefixes.items()
    }


def load_norm(model: str, layer: int, state: Mapping[str, Tensor], norm: nn.Module) -> None:
    """Load the own norm of a stored reranker's exit. Raises BadInput if it is not a copy of the backbone's."""
    stored, expected = (
        {name: list(tensor.shape) for name, tensor in tensors.items()}
        for tensors in (state, norm.state_dict())
    )
    if stored != expected:
        raise BadInput(
            f"{model}: heads.safetensors has a norm {stored} of layer {layer}, but the backbone's final norm is "
            f"{expected}; train or fetch it again"
        )
    norm.load_state_dict(state)


def _check_head_sizes(folder: Path, heads: Mapping[int, Tensor], backbone: PreTrainedModel) -> None:
    """Raise BadInput if a head does not fit the backbone's hidden states."""
    hidden_size = backbone.config.get_text_config().hidden_size
    for layer, head in heads.items():
        if head.shape != (hidden_size,):
            raise BadInput(
                f"{folder / 'heads.safetensors'}: the head of layer {layer} is {list(head.shape)}, but states are "
                f"[{hidden_size}]: another model's; train or fetch it again"
            )


def has_adapter(backbone: nn.Module) -> bool:
    """Tell whether peft has wrapped a backbone; without peft nothing is."""
    if find_spec("peft") is None:
        return False
    from peft import PeftModel

    return isinstance(backbone, PeftModel)


def merge_adapter(backbone: PreTrainedModel) -> PreTrainedModel:
    """Return the backbone with its adapter folded into its weights; as it is if it has none."""
    return cast(Any, backbone).merge_and_unload() if has_adapter(backbone) else backbone


def load_adapter(backbone: PreTrainedModel, folder: Path) -> Any:
    """Return the backbone, wrapped by peft with the adapter that `folder` holds."""
    from peft import PeftModel

    return PeftModel.from_pretrained(backbone, folder)


def _check_base(folder: Path, base: BaseModelConfig, expected: str) -> None:
    """Raise BadInput if an adapter's base model has another fingerprint than `expected`."""
    if _fingerprint(base) != expected:
        raise BadInput(
            f"{folder} is an adapter for {base.model} (revision {base.revision}), but what is there now has other "
            "weights than it was trained on; put that checkpoint back"
        )
