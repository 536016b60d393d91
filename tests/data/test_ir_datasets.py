import sys
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from lwr.common.errors import BadInput
from lwr.config.data import DatasetConfig, IrDatasetsSource
from lwr.data.collect import collect
from lwr.data.sources.ir_datasets import read
from lwr.formats.beir import Passage, read_corpus, read_qrels, read_queries


class Doc(NamedTuple):
    doc_id: str
    text: str
    title: str

    def default_text(self):
        return f"{self.title} {self.text}"


class Query(NamedTuple):
    query_id: str
    text: str

    def default_text(self):
        return self.text


class Qrel(NamedTuple):
    query_id: str
    doc_id: str
    relevance: int
    iteration: str


class Made:
    """What ir_datasets gives for an id, in the part of its documented API that is read."""

    def __init__(self, *query_numbers):
        self.numbers = query_numbers

    def docs_cls(self):
        return Doc

    def docs_iter(self):
        return (Doc(f"d{i}", f"text {i}", "" if i % 2 else "Title") for i in range(40))

    def queries_iter(self):
        return (Query(f"q{i}", f"query {i}") for i in self.numbers)

    def qrels_iter(self):
        for i in self.numbers:
            yield Qrel(f"q{i}", f"d{i}", 2, "1")
            yield Qrel(f"q{i}", f"d{i}", 0, "2")  # another subtopic


@pytest.fixture(autouse=True)
def _catalogue(monkeypatch):
    catalogue = {
        "made": Made(),
        "made/train": Made(*range(30)),
        "made/dev": Made(30, 31, 32),
        "made/test": Made(33, 34),
        "other/test": Made(35),
    }
    module = SimpleNamespace(load=catalogue.__getitem__, docs_parent_id=lambda name: name.split("/")[0])
    monkeypatch.setitem(sys.modules, "ir_datasets", module)


def source(dev_from_train=0.0, **splits):
    return IrDatasetsSource(kind="ir_datasets", splits=splits, dev_from_train=dev_from_train)


def test_a_collection_is_collected(tmp_path):
    collect(DatasetConfig(source=source(train="made/train", dev="made/dev", test="made/test")), tmp_path)
    corpus = list(read_corpus(tmp_path))
    assert len(corpus) == 40
    assert corpus[:2] == [Passage("d0", "", "Title text 0"), Passage("d1", "", "text 1")]
    assert len(read_queries(tmp_path)) == 35
    assert read_qrels(tmp_path, "test") == {"q33": {"d33": 2}, "q34": {"d34": 2}}


def test_dev_is_split_off_train():
    qrels = read(source(train="made/train", test="made/test", dev_from_train=0.3)).qrels
    assert len(qrels["train"]) + len(qrels["dev"]) == 30
    assert 3 < len(qrels["dev"]) < 16


def test_what_is_only_ranked_needs_neither_train_nor_dev():
    assert read(source(test="made/test")).qrels.keys() == {"test"}


@pytest.mark.parametrize(
    ("splits", "says"),
    [
        ({"test": "made/none"}, "splits.test: ir_datasets knows no 'made/none'"),
        ({"dev": "made/dev", "test": "other/test"}, "must share one corpus, not 2: made, other"),
        ({"train": "made/train", "test": "made/test"}, "made: has no dev split; set dev_from_train"),
        ({"train": "made/train", "dev": "made/dev", "dev_from_train": 0.1}, "has a dev split of its own"),
        ({"test": "made/test", "dev_from_train": 0.1}, "has no train split, so dev_from_train must be 0"),
    ],
)
def test_what_does_not_fit_is_named(splits, says):
    with pytest.raises(BadInput, match=says):
        read(source(**splits))


def test_documents_without_a_text_are_refused(monkeypatch):
    monkeypatch.setattr(Made, "docs_cls", lambda self: tuple)
    with pytest.raises(BadInput, match="made: its documents have no default text"):
        read(source(test="made/test"))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ir_datasets", None)
    with pytest.raises(BadInput, match="pip install ir_datasets"):
        read(source(test="made/test"))
