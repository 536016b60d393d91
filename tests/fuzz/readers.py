"""Coverage-guided fuzzing of everything that reads a user's file (needs `pip install 'lwr[fuzz]'`, Python 3.11).

    python tests/fuzz/readers.py -max_total_time=600                   all readers
    python tests/fuzz/readers.py -max_total_time=600 --only run,qrels  some of them
    python tests/fuzz/readers.py crash-…                               what was found, again

Whatever is no BadInput, is a bug; libFuzzer writes the input that makes it into the working directory.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["lwr"]):
    from fuzz_targets import TARGETS

    from lwr.common.errors import BadInput

FOLDER = Path(tempfile.mkdtemp(prefix="lwr-fuzz-"))
(FOLDER / "qrels").mkdir()


def chosen() -> list[str]:
    if "--only" not in sys.argv:
        return list(TARGETS)
    at = sys.argv.index("--only")
    names = sys.argv[at + 1].split(",")
    del sys.argv[at : at + 2]
    return names


NAMES = chosen()


def one_input(data: bytes) -> None:
    """The first byte says which reader gets the rest."""
    if not data:
        return
    target = TARGETS[NAMES[data[0] % len(NAMES)]]
    (FOLDER / target.file).write_bytes(data[1:])
    try:
        target.read(FOLDER / target.file)
    except BadInput:
        pass


def seeds() -> Path:
    """A corpus to start from: one good file for each reader."""
    folder = FOLDER / "seeds"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        (folder / name).write_bytes(bytes([number]) + TARGETS[name].good)
    return folder


if __name__ == "__main__":
    again = any(Path(argument).is_file() for argument in sys.argv[1:])
    atheris.Setup(sys.argv + ([] if again else [str(seeds())]), one_input)
    atheris.Fuzz()
