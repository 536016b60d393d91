"""Take over training groups made elsewhere: FlagEmbedding's JSON lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lwr.common.json_lines import write_jsonl
from lwr.common.progress import log
from lwr.config.data import FlagEmbeddingSource
from lwr.formats.training_groups import SUFFIXES, read_training_groups


def groups(source: FlagEmbeddingSource, out: Path) -> None:
    """Check the groups of all files of a source, and write them unchanged to one file.

    What else lies in the folder of the source is named in the log.

    Raises:
        BadInput: There is no file, or a line is not a group.
    """
    folder = Path(source.path).expanduser()
    files = source.files()
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
