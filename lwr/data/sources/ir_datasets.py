"""Read a collection from the catalogue of the package ir_datasets, which downloads it if needed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from lwr.common.errors import BadInput, missing_extra
from lwr.config.data.sources import IrDatasetsSource
from lwr.data.sources.splits import with_dev_split
from lwr.formats.beir import Collection, Origin, Passage, Qrels, Split, parse_grade


def read(source: IrDatasetsSource) -> Collection:
    """Read the corpus that the ids of all splits share (streamed), and the queries and judgements of each.

    The text of a passage is what ir_datasets calls its default text: title and body, if it has both.

    Raises:
        BadInput: The package is not installed, an id is unknown, the ids have different corpora, the documents have no
            default text, or `dev_from_train` does not fit the splits.
    """
    try:
        ir_datasets = import_module("ir_datasets")
    except ImportError:
        raise missing_extra("kind ir_datasets", "ir_datasets", "ir-datasets") from None
    datasets = {}
    for split, name in source.splits.items():
        try:
            datasets[split] = ir_datasets.load(name)
        except KeyError:
            raise BadInput(f"splits.{split}: ir_datasets has no {name!r}; see its catalogue") from None
    corpora = {ir_datasets.docs_parent_id(name) for name in source.splits.values()}
    if len(corpora) != 1:
        raise BadInput(f"splits: must share one corpus, not {len(corpora)}: {', '.join(sorted(corpora))}")
    corpus = corpora.pop()
    documents = ir_datasets.load(corpus)
    if "default_text" not in dir(documents.docs_cls()):  # as in a few corpora: images, clinical trials
        raise BadInput(
            f"{corpus}: its documents have no default text; convert them to a folder in BEIR layout"
        )
    names: dict[Split, str] = {split: f"{source.splits[split]} qrels" for split in datasets}
    qrels: dict[Split, Qrels] = {
        split: _collect_qrels(dataset, names[split]) for split, dataset in datasets.items()
    }
    return Collection(
        (Passage(doc.doc_id, "", (doc.default_text() or "").strip()) for doc in documents.docs_iter()),
        {
            query.query_id: query.default_text() or ""
            for part in datasets.values()
            for query in part.queries_iter()
        },
        with_dev_split(qrels, source.dev_from_train, corpus),
        Origin(f"{corpus} docs", "queries", {"dev": names.get("train", ""), **names}),
        drop_dangling=source.dangling == "drop",
    )


def _collect_qrels(dataset: Any, name: str) -> Qrels:
    """Return the judgements; a pair judged more than once, as by subtopic, gets its highest grade."""
    qrels: Qrels = {}
    for number, row in enumerate(dataset.qrels_iter(), 1):
        judged, grade = qrels.setdefault(row.query_id, {}), parse_grade(row.relevance, f"{name}:{number}")
        judged[row.doc_id] = max(grade, judged.get(row.doc_id, grade))
    return qrels
