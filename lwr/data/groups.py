"""Take over training groups made elsewhere: FlagEmbedding's JSON lines."""

from __future__ import annotations

from pathlib import Path

from lwr.common.errors import BadInput
from lwr.common.json_lines import write_jsonl
from lwr.config.data import FlagEmbeddingSource
from lwr.formats.training_groups import read_training_groups


def groups(source: FlagEmbeddingSource, out: Path) -> None:
    """Check the groups of all files of a source, and write them unchanged to one file.

    Raises:
        BadInput: There is no file, or a line is not a group.
    """
    write_jsonl(out, read_training_groups(list_files(source)))


def list_files(source: FlagEmbeddingSource) -> list[Path]:
    """Return the file that `source.path` names, or the .jsonl files of that folder, sorted by name.

    Raises:
        BadInput: The folder has no .jsonl file.
    """
    path = Path(source.path).expanduser()
    found = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not found:
        raise BadInput(f"{path}: no .jsonl file in this folder; give a file or a folder of them")
    return found
