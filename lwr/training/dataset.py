"""Training groups: JSON lines on disk -> tokenised groups -> padded batches."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from lwr.formats.training_groups import read_training_groups
from lwr.model.batching import pad
from lwr.model.prompt import Prompt, Row, instruction_of


@dataclass(frozen=True)
class TrainingGroup:
    """A query with its passages, the positive first; teacher: a score for each, or None. name: to tell people."""

    rows: list[Row]
    teacher: list[float] | None
    name: str = ""


@dataclass(frozen=True)
class _Texts:
    query: str
    passages: list[str]
    instruction: str | None
    teacher: list[float] | None
    name: str


def read_groups(path: Path, prompt: Prompt, group_size: int, seed: int) -> list[TrainingGroup]:
    """The groups of a file of FlagEmbedding's training lines (`lwr.formats.training_groups`).

    Of several positives one is drawn, of the negatives group_size - 1, repeated where they are fewer, by `seed`
    and line. A line's `prompt`, unless it is upstream's default, stands instead of the template's instruction.
    Raises BadInput.
    """
    texts = [
        _draw(line, group_size, random.Random(f"{seed}:{number}"), f"{path.name}:{number}")
        for number, line in enumerate(read_training_groups([path]), start=1)
    ]
    queries = prompt.queries(group.query for group in texts)
    passages = prompt.passages(passage for group in texts for passage in group.passages)
    return [
        TrainingGroup(
            [prompt.row(queries[g.query], passages[p], g.instruction) for p in g.passages], g.teacher, g.name
        )
        for g in texts
    ]


def _draw(line: dict[str, Any], group_size: int, rng: random.Random, place: str) -> _Texts:
    wanted = group_size - 1
    repeats = -(-wanted // len(line["neg"]))
    positive = rng.randrange(len(line["pos"]))
    negatives = rng.sample(list(range(len(line["neg"]))) * repeats, wanted)
    teacher = None
    if line.get("pos_scores") is not None:
        teacher = [float(line["pos_scores"][positive]), *(float(line["neg_scores"][i]) for i in negatives)]
    passages = [line["pos"][positive], *(line["neg"][i] for i in negatives)]
    name = f"{line['query_id']} ({place})" if "query_id" in line else place
    return _Texts(line["query"], passages, instruction_of(line), teacher, name)


def collate(groups: Sequence[TrainingGroup], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return a batch: its features as `pair`, the number of groups, and teacher scores float32 [groups, group size]."""
    teacher = None if groups[0].teacher is None else torch.tensor([group.teacher for group in groups])
    return {
        "pair": pad([row for group in groups for row in group.rows], tokenizer),
        "groups": len(groups),
        "teacher_scores": teacher,
    }
