"""Read a collection from a folder in BEIR layout."""

from __future__ import annotations

from pathlib import Path

from lwr.common.errors import BadInput
from lwr.common.json_lines import plain_or_gzipped
from lwr.config.data.sources import BeirFolderSource
from lwr.data.sources.splits import split_by_hash
from lwr.formats.beir import SPLITS, Collection, Origin, Qrels, Split, read_corpus, read_qrels, read_queries


def read(source: BeirFolderSource) -> Collection:
    """Read the folder, and take dev and test off the train queries if the source says so.

    All splits search the same corpus, except for passages with a `metadata.split`.

    Raises:
        BadInput: A file is missing or broken, or the shares do not fit the splits of the folder.
    """
    folder = Path(source.path).expanduser()
    queries = read_queries(folder)
    known = None if source.dangling == "drop" else set(queries)
    files: dict[Split, Path] = {split: plain_or_gzipped(folder / f"qrels/{split}.tsv") for split in SPLITS}
    qrels = _read_splits(folder, source, files, known)
    taken_off_train = {"dev": source.dev_from_train > 0, "test": source.test_from_train > 0}
    judged_in: dict[Split, str] = {
        split: str(files["train"] if taken_off_train.get(split) else file) for split, file in files.items()
    }
    return Collection(
        read_corpus(folder),
        queries,
        qrels,
        Origin(
            str(plain_or_gzipped(folder / "corpus.jsonl")),
            str(plain_or_gzipped(folder / "queries.jsonl")),
            judged_in,
        ),
        drop_dangling=source.dangling == "drop",
    )


def _read_splits(
    folder: Path, source: BeirFolderSource, files: dict[Split, Path], query_ids: set[str] | None
) -> dict[Split, Qrels]:
    shares: dict[Split, float] = {"dev": source.dev_from_train, "test": source.test_from_train}
    if not any(shares.values()) and not files["train"].is_file() and not files["dev"].is_file():
        return {"test": read_qrels(folder, "test", query_ids)}  # a folder that is only ranked
    given: list[Split] = [split for split in SPLITS if split == "train" or files[split].is_file()]
    qrels: dict[Split, Qrels] = {split: read_qrels(folder, split, query_ids) for split in given}
    judged: dict[Split, Qrels] = {split: qrels[split] for split in shares if qrels.get(split)}
    for split, share in shares.items():
        key = f"{split}_from_train"
        if split in judged and share:
            raise BadInput(f"{folder}: qrels/{split}.tsv exists, so {key} must be 0 (or remove the file)")
        if split not in judged and not share:
            raise BadInput(
                f"{folder}: no qrels/{split}.tsv, or none judged in it; add it, or set {key} to use train queries"
            )
    return split_by_hash(qrels["train"], shares["dev"], shares["test"]) | judged
