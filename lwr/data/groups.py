"""Take over training groups made elsewhere: FlagEmbedding's JSON lines, or rows with scores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lwr.common.json_lines import write_jsonl
from lwr.common.progress import log
from lwr.config.data.sources import FlagEmbeddingSource, GroupSource, ScoredFilesSource, ScoredHubSource
from lwr.data.sources import hub
from lwr.formats.scored_groups import make_groups, read_scored_rows
from lwr.formats.training_groups import read_training_groups


def groups(source: GroupSource, out: Path) -> None:
    """Check the groups of a source and write them to one file: FlagEmbedding's unchanged, scored rows as groups.

    What else lies in the folder of the source is named in the log.

    Raises:
        BadInput: There is no file, or a line is not a group.
    """
    match source:
        case FlagEmbeddingSource():
            found = read_training_groups(_list_files(source))
        case ScoredFilesSource():
            rows = read_scored_rows(_list_files(source))
            found = make_groups(rows, source.columns, source.positive_from, source.path)
        case ScoredHubSource():
            rows = hub.read_scored_rows(source)
            found = make_groups(rows, source.columns, source.positive_from, source.id)
    write_jsonl(out, _count_same_texts(found))


def _list_files(source: FlagEmbeddingSource | ScoredFilesSource) -> list[Path]:
    """Return the files of a source; log what else lies in its folder."""
    folder = Path(source.path).expanduser()
    files = source.files()
    if folder.is_dir():
        log(f"groups: {len(files)} files of {folder} are read: {_enumerate(files)}")
        if others := sorted(set(folder.iterdir()) - set(files)):
            log(
                f"groups: {len(others)} files or folders of {folder} are passed over: {_enumerate(others)}; "
                f"the names of files with groups end in {', '.join(source.suffixes)}"
            )
    return files


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
