"""Collections of ir_datasets are read by their documented API."""

import re
import sys
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from lwr.common.errors import BadInput
from lwr.config.data.dataset import DatasetConfig
from lwr.config.data.sources import IrDatasetsSource
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


class FakeDataset:
    """A data set with the part of the documented API of ir_datasets that is used."""

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
        "made": FakeDataset(),
        "made/train": FakeDataset(*range(30)),
        "made/dev": FakeDataset(30, 31, 32),
        "made/test": FakeDataset(33, 34),
        "other/test": FakeDataset(35),
    }
    module = SimpleNamespace(load=catalogue.__getitem__, docs_parent_id=lambda name: name.split("/")[0])
    monkeypatch.setitem(sys.modules, "ir_datasets", module)


def source(dev_from_train=0.0, **splits):
    return IrDatasetsSource(kind="ir_datasets", splits=splits, dev_from_train=dev_from_train)


def test_collection_is_written_in_beir_layout(tmp_path):
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


def test_test_split_alone_needs_neither_train_nor_dev():
    assert read(source(test="made/test")).qrels.keys() == {"test"}


@pytest.mark.parametrize(
    ("splits", "says"),
    [
        ({"test": "made/none"}, r"splits\.test: .*'made/none'"),
        ({"dev": "made/dev", "test": "other/test"}, "one corpus, not 2: made, other"),
        ({"train": "made/train", "test": "made/test"}, "made: .*no dev split.*dev_from_train"),
        (
            {"train": "made/train", "dev": "made/dev", "dev_from_train": 0.1},
            "a dev split of its own.*dev_from_train",
        ),
        ({"test": "made/test", "dev_from_train": 0.1}, "no train split.*dev_from_train must be 0"),
    ],
)
def test_splits_that_do_not_fit_are_refused(splits, says):
    with pytest.raises(BadInput, match=says):
        read(source(**splits))


def test_documents_without_a_text_are_refused(monkeypatch):
    monkeypatch.setattr(FakeDataset, "docs_cls", lambda self: tuple)
    with pytest.raises(BadInput, match=r"made: .*no default text"):
        read(source(test="made/test"))


def test_missing_package_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "ir_datasets", None)
    with pytest.raises(BadInput, match=re.escape("pip install 'lwr[ir-datasets]'")):
        read(source(test="made/test"))


def made(monkeypatch, **methods):
    for name, rows in methods.items():
        monkeypatch.setattr(FakeDataset, name, lambda self, rows=rows: iter(rows))


def test_judgements_of_missing_passages_are_left_out_unless_refused(monkeypatch, tmp_path, capsys):
    rows = [Qrel("q33", "d33", 1, "0"), Qrel("q34", "gone", 1, "0")]
    made(monkeypatch, qrels_iter=rows)
    config = source(test="made/test")
    collect(DatasetConfig(source=config), tmp_path / "out")
    assert read_qrels(tmp_path / "out", "test") == {"q33": {"d33": 1}}
    assert read_queries(tmp_path / "out").keys() == {"q33"}
    assert "1 judgements of test in made/test qrels" in capsys.readouterr().err
    with pytest.raises(BadInput, match=r"'gone'.*made docs.*made/test qrels"):
        collect(DatasetConfig(source=config.model_copy(update={"dangling": "error"})), tmp_path / "refused")


def test_fractional_grade_is_refused(monkeypatch):
    made(monkeypatch, qrels_iter=[Qrel("q33", "d33", 1.0, "0"), Qrel("q34", "d34", 0.5, "0")])
    with pytest.raises(BadInput, match=r"made/test qrels:2: grade 0\.5"):
        read(source(test="made/test"))


def test_document_without_a_text_is_empty_and_counted(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(Doc, "default_text", lambda self: None if self.doc_id == "d1" else "text")
    collect(DatasetConfig(source=source(test="made/test")), tmp_path)
    assert list(read_corpus(tmp_path))[1] == Passage("d1", "", "")
    assert "1 passages of made docs have no text" in capsys.readouterr().err


def test_judged_query_without_a_text_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(Query, "default_text", lambda self: None)
    with pytest.raises(BadInput, match=r"'q33' .*no text"):
        collect(DatasetConfig(source=source(test="made/test")), tmp_path)
