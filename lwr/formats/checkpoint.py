"""Where a Hugging Face checkpoint lies and how deep it is: folder, installed package, or hub. No torch here."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lwr.common.errors import BadInput, first_line
from lwr.common.json_lines import read_json

CHECKPOINT_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]  # no pickles, no code


def find_local_folder(model: str) -> Path | None:
    """The folder of `package:NAME/FOLDER` or of a path; None where `model` can only be a hub id.

    Raises BadInput naming what is missing: the package, or the folder's config.json.
    """
    if model.startswith("package:"):
        package, _, inside = model.removeprefix("package:").partition("/")
        try:
            spec = importlib.util.find_spec(package)
        except (ImportError, ValueError):  # no parent, no name
            spec = None
        if spec is None or not spec.submodule_search_locations:
            raise BadInput(f"{model}: no package {package!r} is installed; pip install it")
        folder = Path(spec.submodule_search_locations[0]) / inside
    else:
        folder = Path(model).expanduser()
        looks_like_hub_id = model.count("/") <= 1 and not model.startswith((".", "/", "~"))
        if not folder.is_dir() and looks_like_hub_id:
            return None
    if not (folder / "config.json").is_file():
        raise BadInput(f"{model}: {folder} holds no config.json; give a Hugging Face checkpoint folder")
    return folder


def fetch_checkpoint(model: str, revision: str | None, files: Sequence[str] = CHECKPOINT_FILES) -> Path:
    """The checkpoint's folder; where it is not local, `files` are downloaded from the hub (at `revision`).

    Raises BadInput where neither has it.
    """
    folder = find_local_folder(model)
    if folder is not None:
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=list(files)))
    except (OSError, HfHubHTTPError) as error:
        reason = first_line(error)
        raise BadInput(
            f"{model}: no such folder here, and the hub does not give it at revision {revision} ({reason}); "
            "correct the name, or fetch it once where there is internet"
        ) from None


def read_config(folder: Path) -> dict[str, Any]:
    """Raises BadInput."""
    return read_json(folder / "config.json", {})


def count_layers(model: str, revision: str | None = None) -> int | None:
    """Blocks of a checkpoint by its config.json; None for a hub id that is not in the local cache.

    Raises BadInput where a local checkpoint is missing or does not say.
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
    if not isinstance(layers, int):
        what = "has no num_hidden_layers" if layers is None else f"has num_hidden_layers {layers!r}"
        raise BadInput(f"{model}: {folder / 'config.json'} {what}; not a transformer?")
    return layers


def check_weights(folder: Path) -> None:
    """Raises BadInput where one of the folder's safetensors files is no such file, or cut short.

    Reads their headers alone; a byte that changed since training is for `lwr verify` to find.
    """
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise BadInput(f"{file}: damaged ({error}); fetch or train it again") from None


def weights_fingerprint(folder: Path) -> str:
    """A digest that tells one checkpoint from another at once, however large: sizes and samples of its weights.

    It reads 16 evenly spaced pieces of 64 KiB of each safetensors file, not every byte.
    """
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as reader:
            for piece in range(16):
                reader.seek(size * piece // 16)
                digest.update(reader.read(64 * 1024))
    return digest.hexdigest()


def describe_checkpoint(model: str, revision: str | None, num_layers: int | None) -> dict[str, Any]:
    """Fetch a checkpoint and say what it is, once per grid, before anything trains on it.

    Raises BadInput where it holds no safetensors, damaged ones, or fewer than `num_layers` layers.
    """
    folder = fetch_checkpoint(model, revision)
    if not any(folder.glob("*.safetensors")):
        raise BadInput(f"{model}: {folder} holds no *.safetensors; pickled weights are not read")
    check_weights(folder)
    layers = count_layers(str(folder))
    if num_layers is not None and num_layers > layers:
        raise BadInput(f"num_layers is {num_layers}, but {model} has {layers} layers")
    return {
        "model": model,
        "revision": revision,
        "model_type": read_json(folder / "config.json", {"model_type": str})["model_type"],
        "layers": num_layers or layers,
        "fingerprint": weights_fingerprint(folder),
    }
