"""Collections of the hub are read at fixed commits."""

import sys

import pytest

from lwr.common.errors import BadInput
from lwr.common.json_lines import write_jsonl
from lwr.config.data import DatasetConfig, HubSource
from lwr.data.collect import collect
from lwr.data.sources.hub import read
from lwr.formats.beir import Passage, read_corpus, read_qrels, read_queries

TEXTS = """---
configs:
- config_name: corpus
  data_files: [{split: corpus, path: corpus.jsonl}]
- config_name: queries
  data_files: [{split: queries, path: queries.jsonl}]
---
"""


@pytest.fixture
def hub_folder(tmp_path):
    """Write two data sets in the hub's BEIR form to a folder, which load_dataset reads like the hub."""
    pytest.importorskip("datasets", reason="the package datasets is an extra: pip install datasets")
    rows = [{"_id": str(i), "title": "Title" if i % 2 else "", "text": f"text {i}"} for i in range(40)]
    write_jsonl(tmp_path / "texts/corpus.jsonl", rows)
    write_jsonl(
        tmp_path / "texts/queries.jsonl",
        [{"_id": f"q{i}", "title": "", "text": f"ask {i}"} for i in range(40)],
    )
    (tmp_path / "texts/README.md").write_text(TEXTS)
    (tmp_path / "qrels").mkdir()
    for split, numbers in {"train": range(30), "test": range(30, 40)}.items():
        lines = ["query-id\tcorpus-id\tscore", *(f"q{i}\t{i}\t1" for i in numbers)]
        (tmp_path / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return tmp_path


def source(folder, **keys):
    pins = {"revision": "0" * 40, "qrels_revision": "1" * 40}  # ignored for a folder
    return HubSource(kind="hub", id=f"{folder}/texts", qrels=f"{folder}/qrels", **pins, **keys)


def test_collection_is_written_in_beir_layout(hub_folder, tmp_path):
    collect(DatasetConfig(source=source(hub_folder, dev_from_train=0.3)), tmp_path / "out")
    assert list(read_corpus(tmp_path / "out"))[:2] == [
        Passage("0", "", "text 0"),
        Passage("1", "Title", "text 1"),
    ]
    assert read_queries(tmp_path / "out")["q7"] == "ask 7"
    qrels = {split: read_qrels(tmp_path / "out", split) for split in ("train", "dev", "test")}
    assert qrels["test"] == {f"q{i}": {str(i): 1} for i in range(30, 40)}
    assert sorted([*qrels["train"], *qrels["dev"]]) == sorted(f"q{i}" for i in range(30))


def test_split_validation_is_read_as_dev(hub_folder):
    (hub_folder / "qrels/test.tsv").rename(hub_folder / "qrels/validation.tsv")
    assert read(source(hub_folder)).qrels["dev"].keys() == {f"q{i}" for i in range(30, 40)}


def test_commits_are_pinned_and_the_corpus_is_streamed(monkeypatch):
    calls = []

    class Datasets:
        @staticmethod
        def load_dataset(path, name=None, **options):
            calls.append((path, name, options))
            return []

        @staticmethod
        def get_dataset_split_names(path, **options):
            calls.append((path, "names", options))
            return ["test"]

    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    read(source("some"))
    texts, qrels = {"revision": "0" * 40}, {"revision": "1" * 40}
    assert calls == [
        ("some/texts", "corpus", {"split": "corpus", "streaming": True, **texts}),
        ("some/texts", "queries", {"split": "queries", "streaming": True, **texts}),
        ("some/qrels", "names", qrels),
        ("some/qrels", None, {"split": "test", "streaming": True, **qrels}),
    ]


def test_missing_package_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(BadInput, match="pip install datasets"):
        read(source("some"))
