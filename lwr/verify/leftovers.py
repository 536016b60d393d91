"""Find what a killed step left behind.

No step reads any of it, except for checkpoints and unfinished embeddings, from which their steps continue.
"""

from __future__ import annotations

from collections.abc import Iterator

from lwr.common.results_tree import ANY_CELL, ResultsTree


def find_leftovers(tree: ResultsTree) -> Iterator[str]:
    """Find drafts, checkpoints, unfinished embeddings, shards of scores, costs of older versions.

    Yields:
        A line for each that says what to do.
    """
    for path in sorted(tree.root.rglob(".draft-*")):
        if not any(parent.name.startswith(".draft-") for parent in path.parents):
            yield f"{path}: left over from a step that was killed; harmless, may be removed"
    for path in tree.existing(tree.cell(ANY_CELL) / "*.checkpoints-*"):
        if (path.parent / "model").is_dir():
            yield f"{path}: left over from a training that has finished; harmless, may be removed"
        else:
            yield f"{path}: of a training that has not finished, which will continue from here"
    for path in tree.existing(tree.collections / "*" / "embeddings.unfinished-*"):
        if (path.parent / "embeddings").is_dir():
            yield f"{path}: left over from embeddings that were made since; harmless, may be removed"
        else:
            yield f"{path}: of embeddings that are not finished, which will continue from here"
    shards = tree.existing(tree.score_shard(ANY_CELL, "*", "*", "*"))
    shards += tree.existing(tree.teacher_shard("*", "*", "*"))
    for path in shards:
        yield f"{path}: a shard of scores that was not gathered yet, or is left over; harmless"
    for path in tree.existing(tree.arm(ANY_CELL) / "cost" / "*.json"):
        yield f"{path}: the cost of one arm, as older versions wrote it; no step reads it, may be removed"
