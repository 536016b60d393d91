"""Coverage-guided fuzzing of everything that reads a user's file (needs `pip install 'lwr[fuzz]'`, Python 3.11).

    python tests/fuzz/readers.py -max_total_time=600                   all readers
    python tests/fuzz/readers.py -max_total_time=600 --only run,qrels  some of them
    python tests/fuzz/readers.py crash-…                               what was found, again

Whatever is no BadInput, is a bug; libFuzzer writes the input that makes it into the working directory.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["lwr"]):
    from lwr.beir import read_corpus, read_qrels, read_queries
    from lwr.checkpoint import check_weights, count_layers
    from lwr.config_file import read
    from lwr.files import BadInput, read_json, read_jsonl
    from lwr.group_lines import read_group_lines
    from lwr.parquet import inputs_of
    from lwr.parquet import read as read_parquet
    from lwr.schedule import Schedule
    from lwr.trec import read_run

FOLDER = Path(tempfile.mkdtemp(prefix="lwr-fuzz-"))
(FOLDER / "qrels").mkdir()


def schedule(path: Path) -> None:
    try:
        Schedule.parse(path.read_text(encoding="latin-1"))
    except ValueError as error:
        raise BadInput(str(error)) from None


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "corpus": ("corpus.jsonl", lambda path: list(read_corpus(path.parent))),
    "queries": ("queries.jsonl", lambda path: read_queries(path.parent)),
    "qrels": ("qrels/test.tsv", lambda path: read_qrels(path.parent.parent, "test")),
    "run": ("run.trec", read_run),
    "groups": ("groups.jsonl", lambda path: list(read_group_lines([path]))),
    "gzip": ("rows.jsonl.gz", lambda path: list(read_jsonl(path, {"a": str}))),
    "json": ("some.json", lambda path: read_json(path, {"a": list})),
    "config": ("grid.yaml", read),
    "layers": ("config.json", lambda path: count_layers(str(path.parent))),
    "weights": ("model.safetensors", lambda path: check_weights(path.parent)),
    "parquet": ("table.parquet", lambda path: (read_parquet(path, ["query_id"]), inputs_of(path))),
    "schedule": ("schedule.txt", schedule),
}


def chosen() -> list[str]:
    if "--only" not in sys.argv:
        return list(READERS)
    at = sys.argv.index("--only")
    names = sys.argv[at + 1].split(",")
    del sys.argv[at : at + 2]
    return names


NAMES = chosen()


def one_input(data: bytes) -> None:
    """The first byte says which reader gets the rest."""
    if not data:
        return
    name, reader = READERS[NAMES[data[0] % len(NAMES)]]
    (FOLDER / name).write_bytes(data[1:])
    try:
        reader(FOLDER / name)
    except BadInput:
        pass


def seeds() -> Path:
    """A corpus to start from: one good file for each reader."""
    good = {
        "corpus": b'{"_id": "d1", "title": "t", "text": "x", "metadata": {"split": "train"}}\n',
        "queries": b'{"_id": "q1", "text": "x"}\n',
        "qrels": b"query-id\tcorpus-id\tscore\nq1\td1\t1\n",
        "run": b"q1 Q0 d1 1 9.5 tag\nq1 Q0 d2 2 9.0 tag\n",
        "groups": b'{"query": "q", "pos": ["p"], "neg": ["n"], "pos_scores": [1.5], "neg_scores": [-2]}\n',
        "json": b'{"a": [1, 2.5, null, true]}\n',
        "config": b"start_layers: [2]\nbase_models: {m: {model: ./m}}\ndatasets: {d: {source: {kind: python_docs}}}\n",
        "layers": b'{"num_hidden_layers": 4, "text_config": {"num_hidden_layers": 2}}',
        "schedule": b"2:20 4:10 6",
    }
    folder = FOLDER / "seeds"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        (folder / name).write_bytes(bytes([number]) + good.get(name, b""))
    return folder


if __name__ == "__main__":
    again = any(Path(argument).is_file() for argument in sys.argv[1:])
    atheris.Setup(sys.argv + ([] if again else [str(seeds())]), one_input)
    atheris.Fuzz()
