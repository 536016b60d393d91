"""Find, check and describe Hugging Face checkpoints (a folder, an installed package, the hub) without torch."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lwr.common.errors import BadInput, first_line
from lwr.common.exits import layers_with_head
from lwr.common.hashing import sha256
from lwr.common.json_lines import read_json

CHECKPOINT_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
"""Patterns of the files that are downloaded from the hub: neither pickles nor code."""
DESCRIPTION_FILES = [pattern for pattern in CHECKPOINT_FILES if pattern != "*.safetensors"]
"""Those of them that are not weights."""
WEIGHTS_INDEX = "model.safetensors.index.json"
"""The file that says in which of several files a tensor is."""


class HubUnreachable(BadInput):
    """A checkpoint is not on this machine, and the hub could not be asked for it."""


def find_local_folder(model: str) -> Path | None:
    """Return the folder of a local checkpoint, or None if `model` can only be a hub id.

    Args:
        model: `package:NAME/FOLDER` (a folder inside an installed package), a path, or a hub id.

    Raises:
        BadInput: The package is not installed, or the folder has no config.json.
    """
    if model.startswith("package:"):
        package, _, inside = model.removeprefix("package:").partition("/")
        try:
            spec = importlib.util.find_spec(package)
        except (ImportError, ValueError):  # the parent package is missing, or the name is empty
            spec = None
        if spec is None or not spec.submodule_search_locations:
            raise BadInput(f"{model}: no package {package!r} is installed; pip install it")
        folder = Path(spec.submodule_search_locations[0]) / inside
    else:
        folder = Path(model).expanduser()
        is_hub_id = model.count("/") <= 1 and not model.startswith((".", "/", "~"))
        if not folder.is_dir() and is_hub_id:
            return None
    if not (folder / "config.json").is_file():
        raise BadInput(f"{model}: {folder} holds no config.json; give a Hugging Face checkpoint folder")
    return folder


def fetch_checkpoint(model: str, revision: str | None, files: Sequence[str] = CHECKPOINT_FILES) -> Path:
    """Return the folder of a checkpoint; download it from the hub if it is not local.

    Args:
        model: As for `find_local_folder`.
        revision: Branch, tag or commit on the hub; None: the default branch. A folder has none.
        files: Patterns of the files to download.

    Raises:
        HubUnreachable: The checkpoint is not local, and there is no connection to the hub.
        BadInput: The checkpoint is neither local nor on the hub, or a revision of a folder is asked for.
    """
    folder = find_local_folder(model)
    if folder is not None:
        if revision is not None:
            raise BadInput(f"{model}: a folder has no revision {revision}; leave out the revision")
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=list(files)))
    except OSError as error:  # HfHubHTTPError, too, where the hub has answered
        reason = first_line(error)
        at = "" if revision is None else f" at revision {revision}"
        answered = isinstance(error, HfHubHTTPError)
        raise (BadInput if answered else HubUnreachable)(
            f"{model}: no such folder, and the hub does not provide it{at} ({reason}); "
            "correct the name, or download it once with internet access"
        ) from None


def is_on_this_machine(model: str, revision: str | None) -> bool:
    """Return whether a checkpoint is a folder, or a hub id whose weights are in the local cache.

    Raises:
        BadInput: A local checkpoint is missing.
    """
    if find_local_folder(model) is not None:
        return True
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            model, revision=revision, allow_patterns=CHECKPOINT_FILES, local_files_only=True
        )
    except (OSError, ValueError):  # not there, or not an id
        return False
    return any(Path(folder).glob("*.safetensors"))


def read_config(folder: Path) -> dict[str, Any]:
    """Read the config.json of a checkpoint.

    Raises:
        BadInput: The file is missing or is not a JSON object.
    """
    return read_json(folder / "config.json", {})


def count_layers(model: str, revision: str | None = None) -> int | None:
    """Return how many transformer blocks a checkpoint has; None for a hub id that is not in the local cache.

    Args:
        model: As for `find_local_folder`.
        revision: As for `fetch_checkpoint`.

    Raises:
        BadInput: A local checkpoint is missing, or its config.json lacks the number.
    """
    folder = find_local_folder(model)
    if folder is None:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(model, "config.json", revision=revision)
        if not isinstance(cached, str):
            return None
        folder = Path(cached).parent
    config = read_config(folder)
    layers = config.get("text_config", config).get("num_hidden_layers")
    if layers is None:
        layers = _count_layers_under_another_name(folder)
    if not isinstance(layers, int):
        problem = "has no num_hidden_layers" if layers is None else f"has num_hidden_layers {layers!r}"
        raise BadInput(f"{model}: {folder / 'config.json'} {problem}; give a transformer")
    return layers


def _count_layers_under_another_name(folder: Path) -> int | None:
    """Return the number of blocks of an architecture that names it otherwise, such as DistilBERT's `n_layers`."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
    except (ValueError, KeyError, TypeError, AttributeError, OSError):  # reported where the model is loaded
        return None
    own_name = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    given = read_config(folder)
    return getattr(config, own_name, None) if own_name in given.get("text_config", given) else None


def check_weights(folder: Path) -> None:
    """Check that the safetensors files of a folder are there and complete, by their index, headers and sizes.

    A changed byte is not detected here, but by `lwr verify`.

    Raises:
        BadInput: A file is truncated, is not a safetensors file, or is missing though the index names it.
    """
    index = folder / WEIGHTS_INDEX
    if index.is_file() and not (folder / "model.safetensors").is_file():
        named = read_json(index, {"weight_map": dict})["weight_map"].values()
        if missing := sorted({str(name) for name in named if not (folder / str(name)).is_file()}):
            raise BadInput(f"{index}: names {missing[0]}, which is not beside it; fetch it again")
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise BadInput(f"{file}: damaged ({error}); fetch or train it again") from None


def check_no_adapter(folder: Path) -> None:
    """Check that a base model has no adapter beside its weights, which transformers would attach and freeze the rest.

    Raises:
        BadInput: It has one.
    """
    file = folder / "adapter_config.json"
    if file.is_file():
        raise BadInput(
            f"{file}: an adapter beside the weights is not read; merge it into them "
            "(lwr.model.linear.lora.merge_lora), or give a folder without adapter_config.json to use the weights alone"
        )


def weights_fingerprint(folder: Path) -> str:
    """Return a digest that distinguishes checkpoints, in a time that does not depend on their size.

    It covers the size and 16 evenly spaced samples of 64 KiB of each safetensors file.
    """
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as reader:
            for sample in range(16):
                reader.seek(size * sample // 16)
                digest.update(reader.read(64 * 1024))
    return digest.hexdigest()


def exits_of_description(description: Mapping[str, Any]) -> list[int]:
    """Return the layers with a head by the fields of lwr.json; older files have no `head_every`."""
    return layers_with_head(
        description["start_layer"], description["depth"], description.get("head_every", 1)
    )


def digest_files(folder: Path) -> str:
    """Return a digest of a checkpoint: of its weights, as `weights_fingerprint` samples them, and its other files."""
    digest = hashlib.sha256(weights_fingerprint(folder).encode())
    for file in sorted(file for pattern in DESCRIPTION_FILES for file in folder.glob(pattern)):
        digest.update(f"{file.name} {sha256(file)}\n".encode())
    return digest.hexdigest()


def describe_checkpoint(model: str, revision: str | None, num_layers: int | None) -> dict[str, Any]:
    """Fetch and check a base model, and return what identifies it.

    A grid does this once per base model, before it trains.

    Args:
        model: As for `find_local_folder`.
        revision: As for `fetch_checkpoint`.
        num_layers: The number of its layers that are used; None: all.

    Returns:
        `model`, `revision`, `model_type`, `layers` (as used) and `fingerprint` of the weights.

    Raises:
        BadInput: It has no safetensors files, damaged ones, or fewer than `num_layers` layers.
    """
    folder = fetch_checkpoint(model, revision)
    check_no_adapter(folder)
    if not any(folder.glob("*.safetensors")):
        raise BadInput(f"{model}: {folder} holds no *.safetensors; pickled weights are not read")
    check_weights(folder)
    layers = count_layers(str(folder))
    if num_layers is not None and layers is not None and num_layers > layers:
        raise BadInput(f"num_layers is {num_layers}, but {model} has {layers} layers")
    return {
        "model": model,
        "revision": revision,
        "model_type": read_json(folder / "config.json", {"model_type": str})["model_type"],
        "layers": num_layers or layers,
        "fingerprint": weights_fingerprint(folder),
    }
