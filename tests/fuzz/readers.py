"""Fuzz the readers of users' files, guided by coverage (needs `pip install 'lwr[fuzz]'`, Python 3.11).

    python tests/fuzz/readers.py -max_total_time=600                   all readers
    python tests/fuzz/readers.py -max_total_time=600 --only run,qrels  some of them
    python tests/fuzz/readers.py crash-…                               one input again

Any exception but BadInput is a bug; libFuzzer writes the input that raises it to the working directory.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent.parent / "helpers"))  # for fuzz_targets

with atheris.instrument_imports(include=["lwr"]):
    from fuzz_targets import TARGETS

    from lwr.common.errors import BadInput

FOLDER = Path(tempfile.mkdtemp(prefix="lwr-fuzz-"))
(FOLDER / "qrels").mkdir()


def chosen_targets() -> list[str]:
    """Return the names after `--only` and remove them from the arguments, which libFuzzer parses."""
    if "--only" not in sys.argv:
        return list(TARGETS)
    option = sys.argv.index("--only")
    names = sys.argv[option + 1].split(",")
    del sys.argv[option : option + 2]
    return names


NAMES = chosen_targets()


def read_input(data: bytes) -> None:
    """Give the bytes after the first to the reader that the first byte selects."""
    if not data:
        return
    target = TARGETS[NAMES[data[0] % len(NAMES)]]
    (FOLDER / target.file).write_bytes(data[1:])
    try:
        target.read(FOLDER / target.file)
    except BadInput:
        pass


def write_seeds() -> Path:
    """Write the inputs to start from, a good file for each reader, and return their folder."""
    folder = FOLDER / "seeds"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        (folder / name).write_bytes(bytes([number]) + TARGETS[name].good)
    return folder


if __name__ == "__main__":
    is_replay = any(Path(argument).is_file() for argument in sys.argv[1:])
    atheris.Setup(sys.argv + ([] if is_replay else [str(write_seeds())]), read_input)
    atheris.Fuzz()
