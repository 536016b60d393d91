"""Splits that a source lacks, taken off its train queries."""

from __future__ import annotations

from lwr.common.errors import BadInput
from lwr.common.hashing import hash_share
from lwr.formats.beir import Qrels, Split


def split_off(train: Qrels, dev: float, test: float = 0.0) -> dict[Split, Qrels]:
    """The train queries with the lowest hashes go to test, those above them to dev, the rest stay."""
    parts: dict[Split, Qrels] = {"train": {}, "dev": {}, "test": {}}
    for query_id, judged in train.items():
        at = hash_share(query_id)
        parts["test" if at < test else "dev" if at < test + dev else "train"][query_id] = judged
    return parts


def with_dev(qrels: dict[Split, Qrels], share: float, source: str) -> dict[Split, Qrels]:
    """The splits of a source, with the key dev_from_train obeyed. What has no train is only ranked: it may lack dev.

    Raises BadInput where dev is there and asked for, or neither; or asked for where there is no train.
    """
    if share and ("dev" in qrels or "train" not in qrels):
        why = "has a dev split of its own" if "dev" in qrels else "has no train split"
        raise BadInput(f"{source}: {why}, so dev_from_train must be 0")
    if "train" in qrels and "dev" not in qrels and not share:
        raise BadInput(f"{source}: has no dev split; set dev_from_train to take queries of train")
    if not share:
        return qrels
    parts = split_off(qrels["train"], dev=share)
    return qrels | {"train": parts["train"], "dev": parts["dev"]}
