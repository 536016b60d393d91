"""A collection that someone else made: a folder in BEIR layout, checked line by line and copied."""

from __future__ import annotations

from pathlib import Path

from lwr.common.errors import BadInput
from lwr.config.data import BeirFolderSource
from lwr.data.sources.splits import split_off
from lwr.formats.beir import SPLITS, Collection, Qrels, Split, read_corpus, read_qrels, read_queries


def read(source: BeirFolderSource) -> Collection:
    """The folder's corpus and judged queries, with dev and test split off train where asked.

    All splits search the same corpus, but for passages whose `metadata.split` says otherwise.
    Raises BadInput for anything broken in the folder, a missing split included.
    """
    folder = Path(source.path).expanduser()
    queries = read_queries(folder)
    qrels = _splits(folder, source, set(queries))
    return Collection(read_corpus(folder), queries, qrels)


def _splits(folder: Path, source: BeirFolderSource, query_ids: set[str]) -> dict[Split, Qrels]:
    shares = {"dev": source.dev_from_train, "test": source.test_from_train}
    present = [split for split in SPLITS if split == "train" or (folder / f"qrels/{split}.tsv").is_file()]
    qrels = {split: read_qrels(folder, split, query_ids) for split in present}
    there = {split for split, judged in qrels.items() if judged}
    for split, share in shares.items():
        key = f"{split}_from_train"
        if split in there and share:
            raise BadInput(f"{folder}: qrels/{split}.tsv is there, so {key} must be 0 (or remove the file)")
        if split not in there and not share:
            raise BadInput(
                f"{folder}: no qrels/{split}.tsv, or none judged in it; add it, or set {key} to take queries of train"
            )
    whole = {split: qrels[split] for split in ("dev", "test") if split in there}
    return split_off(qrels["train"], shares["dev"], shares["test"]) | whole
