"""Training groups on disk: FlagEmbedding's JSON lines, validated on the way in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lwr.common.errors import BadInput
from lwr.common.json_lines import FLOAT32_LIMIT, read_jsonl


def read_training_groups(paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Stream the lines of one file after the other.

    On each line `query`, `pos` and `neg` (lists of one text or more), and where wanted `prompt` (instead of the
    template's instruction). A teacher's `pos_scores` and `neg_scores`, one number for each text, stand on all
    lines or on none; null is as good as absent. Raises BadInput.
    """
    taught = None
    for path in paths:
        for number, line in enumerate(read_jsonl(path, {"query": str, "pos": list, "neg": list}), 1):
            where = f"{path}:{number}"
            _check_texts(line, where)
            is_taught = _is_taught(line, where)
            if taught not in (None, is_taught):
                has = "has" if is_taught else "lacks"
                raise BadInput(
                    f"{where}: {has} teacher scores, unlike the lines before; score all lines or none"
                )
            taught = is_taught
            yield line
    if taught is None:
        raise BadInput(
            f"{paths[0]}: no group in it; a training line is {{'query': …, 'pos': […], 'neg': […]}}"
        )


def _check_texts(line: dict[str, Any], where: str) -> None:
    if not line["query"].strip():
        raise BadInput(f"{where}: field 'query' has no text; write one or drop the line")
    for key in ("pos", "neg"):
        if not line[key] or not all(isinstance(text, str) for text in line[key]):
            raise BadInput(
                f"{where}: field {key!r} must be a list of one text or more; drop the line or fill it"
            )
    if not isinstance(line.get("prompt") or "", str):
        raise BadInput(f"{where}: field 'prompt' is {line['prompt']!r}; make it a string or leave it out")


def _is_taught(line: dict[str, Any], where: str) -> bool:
    scores = {key: line.get(f"{key}_scores") for key in ("pos", "neg")}
    if scores == {"pos": None, "neg": None}:
        return False
    for key, numbers in scores.items():
        if (
            not isinstance(numbers, list)
            or len(numbers) != len(line[key])
            or not all(map(_is_number, numbers))
        ):
            raise BadInput(
                f"{where}: field '{key}_scores' must hold one number for each text of {key!r}, finite as a float32"
            )
    return True


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < FLOAT32_LIMIT
