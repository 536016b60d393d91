"""A data set of the config -> a collection on disk."""

from __future__ import annotations

from pathlib import Path

from lwr.common.files import BadInput
from lwr.config.config import BeirFolder, Dataset, FlagEmbedding, HubDataset, IrDatasets, PythonDocs
from lwr.data.sources import beir_folder, hub, ir_datasets, python_docs
from lwr.formats.beir import Collection, sample_queries, write_collection


def collect(dataset: Dataset, out: Path) -> None:
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


def read(source: PythonDocs | BeirFolder | IrDatasets | HubDataset | FlagEmbedding) -> Collection:
    """The collection of a source. Raises BadInput, also for groups made elsewhere: they have none."""
    match source:
        case PythonDocs():
            return python_docs.read(source)
        case BeirFolder():
            return beir_folder.read(source)
        case IrDatasets():
            return ir_datasets.read(source)
        case HubDataset():
            return hub.read(source)
        case FlagEmbedding():
            raise BadInput(f"{source.path}: groups made elsewhere are no collection; `lwr groups` takes them")
