"""Take the splits that a source lacks off its train queries."""

from __future__ import annotations

from lwr.common.errors import BadInput
from lwr.common.hashing import hash_share
from lwr.formats.beir import Qrels, Split


def split_by_hash(train: Qrels, dev_share: float, test_share: float = 0.0) -> dict[Split, Qrels]:
    """Split the train queries by the hash of their ids; the lowest hashes are test, the next ones dev.

    A query keeps its split when other queries are added or removed.
    """
    qrels: dict[Split, Qrels] = {"train": {}, "dev": {}, "test": {}}
    for query_id, judged in train.items():
        qrels[split_of(query_id, dev_share, test_share)][query_id] = judged
    return qrels


def split_of(key: str, dev_share: float, test_share: float) -> Split:
    """Return the split of a query or a module by the hash of its name."""
    position = hash_share(key)
    if position < test_share:
        return "test"
    return "dev" if position < test_share + dev_share else "train"


def with_dev_split(qrels: dict[Split, Qrels], dev_from_train: float, source: str) -> dict[Split, Qrels]:
    """Return the splits of a source, with a share of the train queries as dev if the source has no dev split.

    A source without a train split is only ranked and needs no dev split.

    Args:
        qrels: The splits of the source.
        dev_from_train: The share of the train queries; 0: the source has what it needs.
        source: Name of the source in errors.

    Raises:
        BadInput: The share is set but cannot be taken or is not needed, or it is needed and not set.
    """
    if dev_from_train and ("dev" in qrels or "train" not in qrels):
        reason = "has a dev split of its own" if "dev" in qrels else "has no train split"
        raise BadInput(f"{source}: {reason}, so dev_from_train must be 0")
    if "train" in qrels and "dev" not in qrels and not dev_from_train:
        raise BadInput(f"{source}: has no dev split; set dev_from_train to use train queries as dev")
    if not dev_from_train:
        return qrels
    parts = split_by_hash(qrels["train"], dev_from_train)
    train_and_dev: dict[Split, Qrels] = {"train": parts["train"], "dev": parts["dev"]}
    return qrels | train_and_dev
