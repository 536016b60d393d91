"""Check collections: their files can be read, and every id that one of them names is in the corpus."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path

from lwr.common.errors import BadInput
from lwr.common.results_tree import ResultsTree
from lwr.formats.beir import SPLITS, Qrels, Split, check_unique_ids, read_corpus, read_qrels, read_queries
from lwr.formats.embeddings import DESCRIPTION, digest_texts, digest_vectors, read_embeddings
from lwr.formats.training_groups import read_training_groups
from lwr.formats.trec import read_run
from lwr.verify.verdict import REMAKE, Verdict


def check_collections(tree: ResultsTree, verdict: Verdict) -> None:
    """Check every collection."""
    for folder in tree.existing(tree.collection("*")):
        if folder.is_dir():
            verdict.check(folder, _collection_faults(tree, folder.name))


def _collection_faults(tree: ResultsTree, dataset: str) -> Iterator[str]:
    folder, corpus, groups = tree.collection(dataset), tree.corpus(dataset), tree.groups(dataset)
    has_judgements = tree.qrels(dataset, "test").parent.exists()
    if groups.is_file() and not corpus.exists() and not has_judgements:
        for _ in read_training_groups([groups]):  # adopted groups have no collection beside them
            pass
        return
    queries = read_queries(folder)
    qrels = {split: read_qrels(folder, split, queries) for split in _judged_splits(tree, dataset)}
    named_ids: dict[str, set[str]] = {
        split: {doc for docs in judged.values() for doc in docs} for split, judged in qrels.items()
    }
    runs = [(path, path.stem) for path in tree.existing(tree.run(dataset, "*"))]
    runs += [(path, "train") for path in tree.existing(tree.teacher_run(dataset, "*"))]
    for path, split in runs:
        run = read_run(path)
        if unknown := run.keys() - qrels.get(split, {}).keys():
            yield f"{path}: query {min(unknown)!r} is not judged for {split}; {REMAKE}"
        named_ids.setdefault(split, set()).update(doc for docs in run.values() for doc, _ in docs)
    if groups.is_file():
        yield from _group_faults(groups, qrels.get("train", {}), named_ids.setdefault("train", set()))
    yield from _missing_passages(folder, corpus, named_ids)
    if tree.embeddings(dataset).exists():
        yield from _embedding_faults(tree, dataset)


def _embedding_faults(tree: ResultsTree, dataset: str) -> Iterator[str]:
    folder = tree.embeddings(dataset)
    recorded = read_embeddings(folder).description
    for name, digest in digest_texts(tree.collection(dataset)).items():
        if recorded["inputs"].get(name) != digest:
            yield f"{folder / DESCRIPTION}: made of another {name} than is there now; {REMAKE}"
    found = digest_vectors(folder)
    for name in sorted(recorded["sha256"].keys() | found.keys()):
        if name not in found:
            yield f"{folder / name}: missing; {REMAKE}"
        elif found[name] != recorded["sha256"].get(name):
            yield f"{folder / name}: is not what `lwr embed` wrote; {REMAKE}"


def _judged_splits(tree: ResultsTree, dataset: str) -> list[Split]:
    splits: list[Split] = [split for split in SPLITS if tree.qrels(dataset, split).is_file()]
    if "test" not in splits:
        raise BadInput(f"{tree.qrels(dataset, 'test')}: missing; run the workflow again")
    return splits


def _group_faults(path: Path, qrels: Qrels, named_ids: set[str]) -> Iterator[str]:
    """Find groups that contradict the judgements; add the ids of their passages to `named_ids`."""
    for number, group in enumerate(read_training_groups([path]), 1):
        query, positives, negatives = group["query_id"], group["pos_id"], group["neg_id"]
        named_ids.update(positives, negatives)
        relevant = {doc for doc, grade in qrels.get(query, {}).items() if grade > 0}
        if not set(positives) <= relevant or set(negatives) & relevant:
            yield f"{path}:{number}: query {query!r} is judged otherwise in qrels/train.tsv; {REMAKE}"


def _missing_passages(folder: Path, corpus: Path, named_ids: dict[str, set[str]]) -> Iterator[str]:
    """Find ids without a passage. named_ids: split -> ids that its files name; passages found are removed."""
    hashes = array("q")
    for passage in read_corpus(folder):
        hashes.append(hash(passage.doc_id))
        for split in named_ids if passage.split is None else [passage.split]:
            named_ids.get(split, set()).discard(passage.doc_id)
    check_unique_ids(corpus, hashes)
    for split, missing in named_ids.items():
        if missing:
            yield f"{corpus}: no passage {min(missing)!r}, which {split} names; {REMAKE}"
