"""A collection from the Hugging Face hub, in the form of the BEIR data sets there, at fixed commits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lwr.common.errors import BadInput
from lwr.config.data import HubSource
from lwr.data.sources.splits import with_dev
from lwr.formats.beir import Collection, Passage, Qrels, Split

SPLIT_OF: dict[str, Split] = {"train": "train", "dev": "dev", "validation": "dev", "test": "test"}


def read(source: HubSource) -> Collection:
    """The subset `corpus` of `id`, streamed, its subset `queries`, and the splits of `qrels`.

    Raises BadInput where the package datasets is not installed, and what that package raises for a data set
    that is not there or has another form.
    """
    try:
        from datasets import get_dataset_split_names, load_dataset
    except ImportError:
        raise BadInput("kind hub: the package datasets is not installed; pip install datasets") from None
    texts = {
        part: load_dataset(source.id, part, split=part, revision=source.revision, streaming=True)
        for part in ("corpus", "queries")
    }
    judged = {
        SPLIT_OF[name]: load_dataset(source.qrels, split=name, revision=source.qrels_revision, streaming=True)
        for name in get_dataset_split_names(source.qrels, revision=source.qrels_revision)
        if name in SPLIT_OF
    }
    qrels = {split: _qrels(rows) for split, rows in judged.items()}
    return Collection(
        (Passage(str(row["_id"]), row.get("title") or "", row["text"]) for row in texts["corpus"]),
        {str(row["_id"]): row["text"] for row in texts["queries"]},
        with_dev(qrels, source.dev_from_train, source.qrels),
    )


def _qrels(rows: Iterable[dict[str, Any]]) -> Qrels:
    qrels: Qrels = {}
    for row in rows:  # ids that look like numbers have become numbers
        qrels.setdefault(str(row["query-id"]), {})[str(row["corpus-id"])] = int(row["score"])
    return qrels
