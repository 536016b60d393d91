"""Read training groups from disk, tokenise them, and collate them into batches."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lwr.common.progress import log
from lwr.formats.training_groups import read_training_groups
from lwr.model.batching import pad
from lwr.model.prompt import LinePrompts, Prompt, Row
from lwr.training.teacher_scores import join_teacher_scores


@dataclass(frozen=True)
class TrainingGroup:
    """A query with its passages, tokenised; the positive comes first."""

    rows: list[Row]
    teacher_scores: list[float] | None  # one per row
    name: str = ""  # place in the file, and the query's id if it has one; for messages


class Batch(TypedDict):
    """Some groups as tensors; the rows of a group are adjacent."""

    features: dict[str, Tensor]  # each int64 [rows, tokens]
    teacher_scores: Tensor | None  # float32 [groups, group size]
    group_names: list[str]


@dataclass(frozen=True)
class _GroupTexts:
    """A group before it is tokenised."""

    query: str
    passages: list[str]
    prompts: LinePrompts
    teacher_scores: list[float] | None
    name: str


def read_groups(
    path: Path, prompt: Prompt, group_size: int, seed: int, teacher_run: Path | None = None
) -> list[TrainingGroup]:
    """Read and tokenise the groups of a file of FlagEmbedding's training lines.

    One positive of each line is drawn, and `group_size` - 1 negatives; negatives are repeated if there are fewer. The
    draw depends on `seed` and the line number alone. A line's `prompt`, unless it is upstream's default, replaces the
    template's instruction; its `query_prompt` and `passage_prompt` replace what the template writes before the texts.

    Args:
        path: JSON lines (see `lwr.formats.training_groups`).
        prompt: The prompt that tokenises queries and passages.
        group_size: Passages per group.
        seed: Seed of the draws.
        teacher_run: TREC run whose scores replace those in the groups; None: theirs are kept.

    Raises:
        BadInput: A line is malformed, or sets an instruction that the prompt has no place for; or the teacher's run
            does not fit the groups.
    """
    lines = enumerate(read_training_groups([path]), start=1)
    drawn = []
    for number, line in lines if teacher_run is None else join_teacher_scores(lines, path, teacher_run):
        group = _draw_group(line, group_size, random.Random(f"{seed}:{number}"), f"{path.name}:{number}")
        prompt.check_line(group.prompts, f"{path}:{number}")
        drawn.append(group)
    if told := prompt.describe_cut_queries((group.query, group.prompts) for group in drawn):
        log(f"{path}: {told}")
    rows_of_groups = prompt.group_rows([(group.query, group.passages, group.prompts) for group in drawn])
    return [
        TrainingGroup(rows, group.teacher_scores, group.name)
        for rows, group in zip(rows_of_groups, drawn, strict=True)
    ]


def _draw_group(line: dict[str, Any], group_size: int, rng: random.Random, place: str) -> _GroupTexts:
    """Draw one positive and `group_size` - 1 negatives; `place` is the line's `file:line`."""
    wanted = group_size - 1
    repeats = -(-wanted // len(line["neg"]))
    positive = rng.randrange(len(line["pos"]))
    negatives = rng.sample(list(range(len(line["neg"]))) * repeats, wanted)
    teacher_scores = None
    if line.get("pos_scores") is not None:
        teacher_scores = [
            float(line["pos_scores"][positive]),
            *(float(line["neg_scores"][i]) for i in negatives),
        ]
    passages = [line["pos"][positive], *(line["neg"][i] for i in negatives)]
    name = f"{line['query_id']} ({place})" if "query_id" in line else place
    return _GroupTexts(line["query"], passages, LinePrompts.from_line(line), teacher_scores, name)


def collate(
    groups: Sequence[TrainingGroup],
    tokenizer: PreTrainedTokenizerBase,
    num_embeddings: int | None = None,
    mark_passages: bool = False,
) -> Batch:
    """Pad the rows of all groups into one batch (see `pad`). Either all groups have teacher scores or none has."""
    rows = [row for group in groups for row in group.rows]
    has_teacher = groups[0].teacher_scores is not None
    return {
        "features": pad(rows, tokenizer, num_embeddings, mark_passages),
        "teacher_scores": torch.tensor([group.teacher_scores for group in groups]) if has_teacher else None,
        "group_names": [group.name for group in groups],
    }
