"""Read a collection from the Hugging Face hub, in the form of the BEIR data sets there, at fixed commits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lwr.common.errors import BadInput
from lwr.config.data import HubSource
from lwr.data.sources.splits import with_dev_split
from lwr.formats.beir import Collection, Passage, Qrels, Split

SPLIT_OF: dict[str, Split] = {"train": "train", "dev": "dev", "validation": "dev", "test": "test"}
"""Name of a split on the hub -> our split. Other splits are ignored."""


def read(source: HubSource) -> Collection:
    """Read the subsets `corpus` (streamed) and `queries` of `source.id`, and the splits of `source.qrels`.

    Errors of the package datasets pass through, such as those for a data set that does not exist.

    Raises:
        BadInput: The package datasets is not installed, or `dev_from_train` does not fit the splits.
    """
    try:
        from datasets import get_dataset_split_names, load_dataset
    except ImportError:
        raise BadInput("kind hub: the package datasets is not installed; pip install datasets") from None
    texts = {
        subset: load_dataset(source.id, subset, split=subset, revision=source.revision, streaming=True)
        for subset in ("corpus", "queries")
    }
    judgements: dict[Split, Any] = {
        SPLIT_OF[name]: load_dataset(source.qrels, split=name, revision=source.qrels_revision, streaming=True)
        for name in get_dataset_split_names(source.qrels, revision=source.qrels_revision)
        if name in SPLIT_OF
    }
    qrels: dict[Split, Qrels] = {split: _collect_qrels(rows) for split, rows in judgements.items()}
    return Collection(
        (Passage(str(row["_id"]), row.get("title") or "", row["text"]) for row in texts["corpus"]),
        {str(row["_id"]): row["text"] for row in texts["queries"]},
        with_dev_split(qrels, source.dev_from_train, source.qrels),
    )


def _collect_qrels(rows: Iterable[dict[str, Any]]) -> Qrels:
    qrels: Qrels = {}
    for row in rows:  # the hub stores ids that look like numbers as numbers
        qrels.setdefault(str(row["query-id"]), {})[str(row["corpus-id"])] = int(row["score"])
    return qrels
