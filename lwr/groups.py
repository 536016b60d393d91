"""Training groups: JSON lines on disk -> tokenised groups -> padded batches."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from lwr.batching import pad
from lwr.files import BadInput, read_jsonl
from lwr.prompt import Prompt, Row


@dataclass(frozen=True)
class Group:
    """A query with its passages, the positive first; teacher: a score for each, or None."""

    rows: list[Row]
    teacher: list[float] | None


@dataclass(frozen=True)
class _Texts:
    query: str
    passages: list[str]
    instruction: str | None
    teacher: list[float] | None


def read_groups(path: Path, prompt: Prompt, group_size: int, seed: int) -> list[Group]:
    """FlagEmbedding's training lines: `query`, `pos`, `neg`, optionally `prompt`, `pos_scores`, `neg_scores`.

    Of several positives one is drawn, of the negatives group_size - 1, repeated where they are fewer, by `seed`
    and line. A line's `prompt` stands instead of the template's instruction. Raises BadInput.
    """
    texts = []
    for number, line in enumerate(read_jsonl(path, {"query": str, "pos": list, "neg": list}), start=1):
        texts.append(_draw(line, group_size, random.Random(f"{seed}:{number}"), f"{path}:{number}"))
    if not texts:
        raise BadInput(f"{path}: no group in it; a training line is {{'query': …, 'pos': […], 'neg': […]}}")
    taught = [number for number, group in enumerate(texts, start=1) if group.teacher is not None]
    if taught and len(taught) < len(texts):
        raise BadInput(
            f"{path}:{taught[0]} has teacher scores, but not every line has; score all lines or none"
        )
    queries = prompt.queries(group.query for group in texts)
    passages = prompt.passages(passage for group in texts for passage in group.passages)
    return [
        Group([prompt.row(queries[g.query], passages[p], g.instruction) for p in g.passages], g.teacher)
        for g in texts
    ]


def _draw(line: dict[str, Any], group_size: int, rng: random.Random, where: str) -> _Texts:
    for key in ("pos", "neg"):
        if not line[key] or not all(isinstance(text, str) for text in line[key]):
            raise BadInput(
                f"{where}: field {key!r} must be a list of one text or more; drop the line or fill it"
            )
    wanted = group_size - 1
    repeats = -(-wanted // len(line["neg"]))
    positive = rng.randrange(len(line["pos"]))
    negatives = rng.sample(list(range(len(line["neg"]))) * repeats, wanted)
    return _Texts(
        line["query"],
        [line["pos"][positive], *(line["neg"][i] for i in negatives)],
        line.get("prompt"),
        _teacher(line, positive, negatives, where),
    )


def _teacher(line: dict[str, Any], positive: int, negatives: list[int], where: str) -> list[float] | None:
    if "pos_scores" not in line and "neg_scores" not in line:
        return None
    for key in ("pos", "neg"):
        scores = line.get(f"{key}_scores")
        if not isinstance(scores, list) or len(scores) != len(line[key]):
            raise BadInput(f"{where}: field '{key}_scores' must hold one number for each text of {key!r}")
    return [line["pos_scores"][positive], *(line["neg_scores"][i] for i in negatives)]


def collate(groups: Sequence[Group], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Keyword arguments of `LayerwiseReranker.forward`; a last batch of fewer groups stays whole groups."""
    teacher = None if groups[0].teacher is None else torch.tensor([group.teacher for group in groups])
    return {
        "pair": pad([row for group in groups for row in group.rows], tokenizer),
        "groups": len(groups),
        "teacher_scores": teacher,
    }
