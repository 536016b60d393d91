"""Bring a data set of the config into BEIR layout.

To add a source: write its config class and list it in `Source` (lwr/config/data/sources.py), write a module with
`read(source) -> Collection` (lwr/data/sources/), and add a case to `read_source` below.
"""

from __future__ import annotations

from pathlib import Path

from lwr.common.errors import BadInput
from lwr.common.progress import log
from lwr.config.data.dataset import DatasetConfig
from lwr.config.data.sources import (
    BeirFolderSource,
    FlagEmbeddingSource,
    HubSource,
    IrDatasetsSource,
    PythonDocsSource,
    ScoredFilesSource,
    ScoredHubSource,
    Source,
)
from lwr.data.sources import beir_folder, hub, ir_datasets, python_docs
from lwr.formats.beir import Collection, Qrels, Split, answerable_queries, sample_queries, write_collection


def collect(dataset: DatasetConfig, out: Path) -> None:
    """Write the collection of a data set to the folder `out`, with at most `dataset.queries` queries per split.

    The sample of queries is drawn here alone: later steps use all judged queries of a split.

    Raises:
        BadInput: The source is broken or not installed.
    """
    complete = read_source(dataset.source)
    _check_relevant(complete)
    limits: dict[str, int] = dict(dataset.queries.items())
    qrels: dict[Split, Qrels] = {
        split: {query: judged[query] for query in sample_queries(judged, limits.get(split))}
        for split, judged in complete.qrels.items()
    }
    sampled = {query for judged in qrels.values() for query in judged}
    queries = {query: text for query, text in complete.queries.items() if query in sampled}
    all_judged = {query for of_split in complete.qrels.values() for query in of_split}
    if unjudged := complete.queries.keys() - all_judged:
        log(f"collect: {len(unjudged)} queries without judgements are left out")
    write_collection(out, complete.corpus, queries, qrels, complete.origin, complete.drop_dangling)


def _check_relevant(collection: Collection) -> None:
    """Log how many queries of each split have no relevant passage; refuse a split where none has one."""
    for split, judged in collection.qrels.items():
        without = judged.keys() - answerable_queries(judged).keys()
        if without and len(without) == len(judged):
            raise BadInput(
                f"{split}: none of the {len(judged)} queries has a passage with a grade above 0; judge some as relevant"
            )
        if without:
            log(
                f"collect: {len(without)} of the {len(judged)} queries of {split} have no passage with a grade above "
                f"0, such as {min(without)!r}"
            )


def read_source(source: Source) -> Collection:
    """Read the collection of a source.

    Raises:
        BadInput: The source is broken or not installed, or consists of training groups.
    """
    match source:
        case PythonDocsSource():
            return python_docs.read(source)
        case BeirFolderSource():
            return beir_folder.read(source)
        case IrDatasetsSource():
            return ir_datasets.read(source)
        case HubSource():
            return hub.read(source)
        case FlagEmbeddingSource() | ScoredFilesSource() | ScoredHubSource():
            raise BadInput(
                f"kind {source.kind}: training groups are not a collection; `lwr groups` reads them"
            )
