"""A collection by its ids in the catalogue of the package ir_datasets, which downloads what is not there yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lwr.common.errors import BadInput
from lwr.config.data import IrDatasetsSource
from lwr.data.sources.splits import with_dev
from lwr.formats.beir import Collection, Passage, Qrels

if TYPE_CHECKING:
    from ir_datasets import Dataset


def read(source: IrDatasetsSource) -> Collection:
    """The corpus that the ids share, streamed, and the queries and judgements of each.

    A text is what ir_datasets calls the default one: title and body, where there are both. Raises BadInput for
    an unknown id, ids over different corpora, a corpus without such texts, or a package that is not installed.
    """
    try:
        import ir_datasets
    except ImportError:
        raise BadInput("kind ir_datasets: the package is not installed; pip install ir_datasets") from None
    parts = {}
    for split, name in source.splits.items():
        try:
            parts[split] = ir_datasets.load(name)
        except KeyError:
            raise BadInput(f"splits.{split}: ir_datasets knows no {name!r}; see its catalogue") from None
    corpora = {ir_datasets.docs_parent_id(name) for name in source.splits.values()}
    if len(corpora) != 1:
        raise BadInput(f"splits: must share one corpus, not {len(corpora)}: {', '.join(sorted(corpora))}")
    corpus = corpora.pop()
    documents = ir_datasets.load(corpus)
    if "default_text" not in dir(documents.docs_cls()):  # those of a few corpora: images, clinical trials
        raise BadInput(
            f"{corpus}: its documents have no default text; write them out as a folder in BEIR layout"
        )
    return Collection(
        (Passage(doc.doc_id, "", doc.default_text().strip()) for doc in documents.docs_iter()),
        {query.query_id: query.default_text() for part in parts.values() for query in part.queries_iter()},
        with_dev({split: _qrels(part) for split, part in parts.items()}, source.dev_from_train, corpus),
    )


def _qrels(part: Dataset) -> Qrels:
    """Of a pair judged more than once, as by subtopic, the highest grade."""
    qrels: Qrels = {}
    for row in part.qrels_iter():
        judged = qrels.setdefault(row.query_id, {})
        judged[row.doc_id] = max(row.relevance, judged.get(row.doc_id, row.relevance))
    return qrels
