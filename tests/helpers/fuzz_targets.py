"""List the readers of users' files, for the fuzz tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lwr.common.errors import BadInput
from lwr.common.json_lines import read_json, read_jsonl
from lwr.common.yaml_lines import parse_yaml
from lwr.config.load import read
from lwr.formats.beir import read_corpus, read_qrels, read_queries
from lwr.formats.checkpoint import check_weights, count_layers
from lwr.formats.parquet import read as read_parquet
from lwr.formats.parquet import read_inputs
from lwr.formats.training_groups import read_training_groups
from lwr.formats.trec import read_run
from lwr.model.cascade_schedule import Schedule


@dataclass(frozen=True)
class Target:
    """A reader of a file."""

    file: str  # name of the file that it reads
    read: Callable[[Path], object]
    good: bytes = b""  # content of a valid file, if a short one exists


def _schedule(path: Path) -> None:
    try:
        Schedule.parse(path.read_text(encoding="latin-1"))
    except ValueError as error:
        raise BadInput(str(error)) from None


TARGETS = {
    "corpus": Target(
        "corpus.jsonl",
        lambda path: list(read_corpus(path.parent)),
        b'{"_id": "d1", "title": "t", "text": "x", "metadata": {"split": "train"}}\n',
    ),
    "queries": Target(
        "queries.jsonl", lambda path: read_queries(path.parent), b'{"_id": "q1", "text": "x"}\n'
    ),
    "qrels": Target(
        "qrels/test.tsv",
        lambda path: read_qrels(path.parent.parent, "test"),
        b"query-id\tcorpus-id\tscore\nq1\td1\t1\n",
    ),
    "run": Target("run.trec", read_run, b"q1 Q0 d1 1 9.5 tag\nq1 Q0 d2 2 9.0 tag\n"),
    "groups": Target(
        "groups.jsonl",
        lambda path: list(read_training_groups([path])),
        b'{"query": "q", "pos": ["p"], "neg": ["n"], "pos_scores": [1.5], "neg_scores": [-2]}\n',
    ),
    "json": Target("some.json", lambda path: read_json(path, {"a": list}), b'{"a": [1, 2.5, null, true]}\n'),
    "yaml": Target(
        "some.yaml",
        lambda path: parse_yaml(path.read_text(encoding="latin-1"), "some.yaml"),
        b"a: &x {b: [1, 2]}\nc: *x\n<<: *x\n",
    ),
    "config": Target(
        "grid.yaml",
        read,
        b"start_layers: [2]\nbase_models: {m: {model: ./m}}\ndatasets: {d: {source: {kind: python_docs}}}\n",
    ),
    "layers": Target(
        "config.json",
        lambda path: count_layers(str(path.parent)),
        b'{"num_hidden_layers": 4, "text_config": {"num_hidden_layers": 2}}',
    ),
    "schedule": Target("schedule.txt", _schedule, b"2:20 4:10 6"),
    "gzip": Target("rows.jsonl.gz", lambda path: list(read_jsonl(path, {"a": str}))),
    "weights": Target("model.safetensors", lambda path: check_weights(path.parent)),
    "parquet": Target("table.parquet", lambda path: (read_parquet(path, ["query_id"]), read_inputs(path))),
}
