"""Read training groups: FlagEmbedding's JSON lines, or one JSON list of the same objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from lwr.common.errors import BadInput
from lwr.common.json_lines import FLOAT32_LIMIT, plain_or_gzipped, read_json_rows

ScoredField = Literal["query", "passage", "score", "positive", "negatives", "scores"]
"""Fields of rows with scores (`lwr.formats.scored_groups`)."""
SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
"""Ends of the names of files with groups in a folder."""
SCORED_SUFFIXES = (*SUFFIXES, ".parquet")
"""The same for files of rows with scores."""


def list_group_files(path: Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    """Return the file that `path` names, or the files in that folder that end in one of `suffixes`, sorted by name.

    Raises:
        BadInput: The folder has no such file, or a file and its archive.
    """
    path = path.expanduser()
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.iterdir() if file.name.endswith(suffixes) and file.is_file())
    if not found:
        raise BadInput(
            f"{path}: no {', '.join(suffixes)} file in this folder; give a file or a folder of them"
        )
    for file in found:
        if file.suffix != ".gz":
            plain_or_gzipped(file)  # refuses a file beside its archive: its groups would count twice
    return found


def have_teacher_scores(paths: Sequence[Path]) -> bool:
    """Return whether the groups of several files have the scores of a teacher; only the first group is read."""
    return next(read_training_groups(paths)).get("pos_scores") is not None


def read_training_groups(paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Stream the training groups of several files, plain or `.gz`, in the order of the files.

    A group has the keys `query` (a text), `pos` and `neg` (lists of at least one text), and optionally `prompt`, which
    replaces the instruction of the prompt template, and `query_prompt` and `passage_prompt`, which replace what the
    template writes before a text. The scores of a teacher, `pos_scores` and `neg_scores`, have a number per text; all
    groups have them or none does. A null counts as absent.

    Raises:
        BadInput: A file or a line does not have this form, or there is no group.
    """
    has_scores = None  # of the groups read so far; None before the first
    for path in paths:
        for where, group in read_json_rows(path, {"query": str, "pos": list, "neg": list}):
            _check_texts(group, where)
            if has_scores is None:
                has_scores = _has_teacher_scores(group, where)
            elif has_scores != _has_teacher_scores(group, where):
                problem = "lacks" if has_scores else "has"
                raise BadInput(
                    f"{where}: {problem} teacher scores, unlike the lines before; score all lines or none"
                )
            yield group
    if has_scores is None:
        example = "{'query': …, 'pos': […], 'neg': […]}"
        raise BadInput(f"{paths[0]}: no group in it; a line of a group looks like {example}")


def _check_texts(group: dict[str, Any], where: str) -> None:
    if not group["query"].strip():
        raise BadInput(f"{where}: field 'query' has no text; write one or remove the line")
    for key in ("pos", "neg"):
        if not group[key] or not all(isinstance(text, str) for text in group[key]):
            raise BadInput(
                f"{where}: field {key!r} must be a list of at least one text; fill it or remove the line"
            )
    for key in ("prompt", "query_prompt", "passage_prompt"):
        if not isinstance(group.get(key), str | None):
            raise BadInput(f"{where}: field {key!r} is {group[key]!r}; make it a string or leave it out")


def _has_teacher_scores(group: dict[str, Any], where: str) -> bool:
    """Return whether a group has the scores of a teacher; refuse scores that do not match its texts."""
    scores = {key: group.get(f"{key}_scores") for key in ("pos", "neg")}
    if scores == {"pos": None, "neg": None}:
        return False
    for key, numbers in scores.items():
        fits = isinstance(numbers, list) and len(numbers) == len(group[key]) and all(map(is_float32, numbers))
        if not fits:
            raise BadInput(
                f"{where}: field '{key}_scores' must hold one number for each text of {key!r}, finite as a float32"
            )
    return True


def is_float32(value: Any) -> bool:
    """Return whether a value is a number that is finite as a float32."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < FLOAT32_LIMIT
