"""A data set of the config -> a collection on disk."""

from __future__ import annotations

from pathlib import Path

from lwr.common.errors import BadInput
from lwr.config.data import (
    BeirFolderSource,
    DatasetConfig,
    FlagEmbeddingSource,
    HubSource,
    IrDatasetsSource,
    PythonDocsSource,
)
from lwr.data.sources import beir_folder, hub, ir_datasets, python_docs
from lwr.formats.beir import Collection, sample_queries, write_collection


def collect(dataset: DatasetConfig, out: Path) -> None:
    """Write the collection to the folder `out`, in BEIR layout, with at most `dataset.queries` per split.

    Every later step takes all judged queries of a split: the sample is drawn here, once. Raises BadInput.
    """
    whole = read(dataset.source)
    qrels = {
        split: {query: judged[query] for query in sample_queries(judged, dataset.queries.get(split))}
        for split, judged in whole.qrels.items()
    }
    asked = {query for judged in qrels.values() for query in judged}
    queries = {query: text for query, text in whole.queries.items() if query in asked}
    write_collection(out, whole.corpus, queries, qrels)


def read(
    source: PythonDocsSource | BeirFolderSource | IrDatasetsSource | HubSource | FlagEmbeddingSource,
) -> Collection:
    """The collection of a source. Raises BadInput, also for groups made elsewhere: they have none."""
    match source:
        case PythonDocsSource():
            return python_docs.read(source)
        case BeirFolderSource():
            return beir_folder.read(source)
        case IrDatasetsSource():
            return ir_datasets.read(source)
        case HubSource():
            return hub.read(source)
        case FlagEmbeddingSource():
            raise BadInput(f"{source.path}: groups made elsewhere are no collection; `lwr groups` takes them")
