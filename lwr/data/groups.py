"""Training groups that someone else made: FlagEmbedding's JSON lines, checked line by line and copied."""

from __future__ import annotations

from pathlib import Path

from lwr.common.errors import BadInput
from lwr.common.json_lines import write_jsonl
from lwr.config.data import FlagEmbeddingSource
from lwr.formats.training_groups import read_training_groups


def groups(source: FlagEmbeddingSource, out: Path) -> None:
    """Write the groups of all files to `out`, as they are, one file after the other. Raises BadInput."""
    write_jsonl(out, read_training_groups(files(source)))


def files(source: FlagEmbeddingSource) -> list[Path]:
    """The file that `path` names, or the .jsonl files of the folder, by name. Raises BadInput for none."""
    path = Path(source.path).expanduser()
    found = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not found:
        raise BadInput(f"{path}: no .jsonl file in this folder; give a file or a folder of them")
    return found
