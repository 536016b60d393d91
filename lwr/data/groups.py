"""Take over training groups made elsewhere: FlagEmbedding's JSON lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lwr.common.errors import BadInput
from lwr.common.json_lines import plain_or_gzipped, write_jsonl
from lwr.common.progress import log
from lwr.config.data import FlagEmbeddingSource
from lwr.formats.training_groups import read_training_groups

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
"""Ends of the names of files with groups in a folder."""


def groups(source: FlagEmbeddingSource, out: Path) -> None:
    """Check the groups of all files of a source, and write them unchanged to one file.

    What else lies in the folder of the source is named in the log.

    Raises:
        BadInput: There is no file, or a line is not a group.
    """
    files = list_files(source)
    folder = Path(source.path).expanduser()
    if folder.is_dir():
        log(f"groups: {len(files)} files of {folder} are read: {_enumerate(files)}")
        if others := sorted(set(folder.iterdir()) - set(files)):
            log(
                f"groups: {len(others)} files or folders of {folder} are passed over: {_enumerate(others)}; "
                f"the names of files with groups end in {', '.join(SUFFIXES)}"
            )
    write_jsonl(out, _count_same_texts(read_training_groups(files)))


def _count_same_texts(groups: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the groups, and log how many have a negative with the text of a positive."""
    count = 0
    for group in groups:
        positives, negatives = ({" ".join(text.split()) for text in group[key]} for key in ("pos", "neg"))
        count += bool(positives & negatives)
        yield group
    if count:
        log(f"groups: {count} groups have a negative with the text of a positive; training pushes both apart")


def _enumerate(paths: list[Path], at_most: int = 10) -> str:
    names = [f"{path.name}/" if path.is_dir() else path.name for path in paths[:at_most]]
    return ", ".join([*names, *([f"and {len(paths) - at_most} more"] if len(paths) > at_most else [])])


def list_files(source: FlagEmbeddingSource) -> list[Path]:
    """Return the file that `source.path` names, or the files with groups in that folder, sorted by name.

    Raises:
        BadInput: The folder has no such file, or a file and its archive.
    """
    path = Path(source.path).expanduser()
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.iterdir() if file.name.endswith(SUFFIXES) and file.is_file())
    if not found:
        raise BadInput(
            f"{path}: no {', '.join(SUFFIXES)} file in this folder; give a file or a folder of them"
        )
    for file in found:
        if file.suffix != ".gz":
            plain_or_gzipped(file)  # refuses a file beside its archive: its groups would count twice
    return found
