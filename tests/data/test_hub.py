"""Collections of the hub are read at fixed commits."""

import re
import sys

import pytest

from lwr.common.errors import BadInput
from lwr.common.json_lines import read_jsonl, write_jsonl
from lwr.config.data.dataset import DatasetConfig
from lwr.config.data.sources import HubSource, ScoredHubSource
from lwr.data.collect import collect
from lwr.data.groups import groups
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


def test_scored_rows_of_a_data_set_become_groups(tmp_path):
    pytest.importorskip("datasets", reason="the package datasets is an extra: pip install datasets")
    rows = [{"query": "q", "document": text, "score": score} for text, score in (("a", 0.5), ("b", 2.0))]
    write_jsonl(tmp_path / "set/train.jsonl", rows)
    pins = {"id": f"{tmp_path}/set", "revision": "0" * 40, "columns": {"passage": "document"}}
    groups(ScoredHubSource(kind="scored_hub", **pins), tmp_path / "groups.jsonl")
    expected = {"query": "q", "pos": ["b"], "neg": ["a"], "pos_scores": [2.0], "neg_scores": [0.5]}
    assert list(read_jsonl(tmp_path / "groups.jsonl", {})) == [expected]


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
    with pytest.raises(BadInput, match=re.escape("pip install 'lwr[hub]'")):
        read(source("some"))


# --- rows that do not fit --------------------------------------------------------------------------------


@pytest.fixture
def tables(monkeypatch):
    """Return the rows of a data set, which stand in for those of the hub."""
    texts = {"corpus": [{"_id": f"d{i}", "title": None, "text": f"text {i}"} for i in range(4)]}
    texts["queries"] = [{"_id": f"q{i}", "text": f"ask {i}"} for i in range(3)]
    qrels = [{"query-id": f"q{i}", "corpus-id": f"d{i}", "score": 1.0} for i in range(3)]
    rows = texts | {"test": qrels}

    class Datasets:
        @staticmethod
        def load_dataset(path, name=None, *, split, **options):
            return rows[split]

        @staticmethod
        def get_dataset_split_names(path, **options):
            return [name for name in rows if name not in texts]

    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    return rows


def collected(out, **keys):
    collect(DatasetConfig(source=source("some", **keys)), out)
    return list(read_corpus(out)), read_queries(out), read_qrels(out, "test")


def test_whole_numbers_stored_as_floats_are_grades(tables, tmp_path):
    _, _, qrels = collected(tmp_path / "out")
    assert qrels == {f"q{i}": {f"d{i}": 1} for i in range(3)}


def test_ids_are_read_from_the_column_id_as_well(tables, tmp_path):
    for name in ("corpus", "queries"):
        tables[name] = [{"id": row["_id"], "text": row["text"]} for row in tables[name]]
    corpus, queries, _ = collected(tmp_path / "out")
    assert [passage.doc_id for passage in corpus] == ["d0", "d1", "d2", "d3"]
    assert queries.keys() == {"q0", "q1", "q2"}


def test_judgements_of_missing_passages_and_queries_are_left_out_and_counted(tables, tmp_path, capsys):
    tables["test"] += [
        {"query-id": query, "corpus-id": doc, "score": 1} for query, doc in [("q0", "gone"), ("lost", "d1")]
    ]
    tables["queries"].append({"_id": "alone", "text": "its passage is missing"})
    tables["test"].append({"query-id": "alone", "corpus-id": "gone", "score": 1})
    _, queries, qrels = collected(tmp_path / "out")
    assert qrels == {f"q{i}": {f"d{i}": 1} for i in range(3)}
    assert queries.keys() == qrels.keys()
    message = capsys.readouterr().err
    assert "2 judgements of test in some/qrels test are of passages that are missing" in message
    assert "'gone'" in message
    assert "1 judgements of test in some/qrels test are of queries that are missing" in message
    del tables["test"][-2:]
    with pytest.raises(
        BadInput, match=r"1 passages judged for test .*'gone'.*some/texts corpus.*some/qrels test"
    ):
        collected(tmp_path / "refused", dangling="error")


def test_judgements_that_are_all_dangling_are_refused(tables, tmp_path):
    tables["corpus"] = [{"_id": "other", "text": "text"}]
    with pytest.raises(BadInput, match=r"3 judgements of test .*no other is left"):
        collected(tmp_path / "out")


def test_passage_text_that_is_null_is_empty_and_counted(tables, tmp_path, capsys):
    tables["corpus"][1]["text"] = None
    corpus, _, _ = collected(tmp_path / "out")
    assert corpus[1] == Passage("d1", "", "")
    assert "1 passages of some/texts corpus have no text, such as 'd1'" in capsys.readouterr().err


def test_unjudged_query_that_is_null_is_left_out(tables, tmp_path, capsys):
    tables["queries"].append({"_id": "q9", "text": None})
    assert "q9" not in collected(tmp_path / "out")[1]
    assert "1 queries without judgements" in capsys.readouterr().err


def test_repeated_rows_are_read_once(tables, tmp_path):
    tables["test"].append(tables["test"][0])
    tables["queries"].append(tables["queries"][0])
    assert len(collected(tmp_path / "out")[2]) == 3


@pytest.mark.parametrize(
    ("table", "row", "says"),
    [
        ("test", {"query-id": "q0", "corpus-id": "d1", "score": 0.9}, "some/qrels test:4: grade 0.9"),
        (
            "test",
            {"query-id": "q0", "corpus-id": "d1", "score": float("nan")},
            "some/qrels test:4: grade nan",
        ),
        ("test", {"query-id": "q0", "corpus-id": "d1", "score": None}, "some/qrels test:4: grade None"),
        ("test", {"query-id": "q0", "corpus-id": "d1", "score": True}, "some/qrels test:4: grade True"),
        (
            "test",
            {"query-id": "q0", "corpus-id": "d1", "score": 2**40},
            "some/qrels test:4: grade 1099511627776",
        ),
        (
            "test",
            {"query-id": "q0", "corpus-id": "d0", "score": 2},
            "some/qrels test:4: 'q0' and 'd0'.*1 and 2",
        ),
        ("test", {"query-id": None, "corpus-id": "d0", "score": 2}, "some/qrels test:4: id None"),
        (
            "test",
            {"query_id": "q0", "corpus-id": "d0", "score": 2},
            "some/qrels test:4: .*'query-id'.*'query_id'",
        ),
        ("corpus", {"text": "t"}, "some/texts corpus:5: .*'_id' or 'id'.*'text'"),
        ("corpus", {"_id": None, "text": "t"}, "some/texts corpus:5: id None"),
        ("corpus", {"_id": 1.0, "text": "t"}, r"some/texts corpus:5: id 1\.0"),
        ("corpus", {"_id": "a b", "text": "t"}, "some/texts corpus:5: id 'a b'"),
        ("corpus", {"_id": "d0", "text": "t"}, "some/texts corpus:5: id 'd0' is duplicated"),
        ("corpus", {"_id": "d9", "text": 7}, "some/texts corpus:5: .*'text' is 7"),
        ("corpus", {"_id": "d9", "text": "\ud83d"}, "some/texts corpus:5: .*surrogate"),
        ("corpus", {"_id": "d9", "title": 7, "text": "t"}, "some/texts corpus:5: .*'title' is 7"),
        ("corpus", {"_id": "d9", "body": "t"}, "some/texts corpus:5: .*'text'.*'body'"),
        ("queries", {"_id": "q0", "text": "another"}, "some/texts queries:4: id 'q0' is duplicated"),
    ],
)
def test_bad_row_is_reported_with_its_number(tables, tmp_path, table, row, says):
    tables[table].append(row)
    with pytest.raises(BadInput, match=says):
        collected(tmp_path / "out")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_judged_query_that_is_null_is_refused(tables, tmp_path):
    tables["queries"][0]["text"] = None
    with pytest.raises(BadInput, match=r"some/texts queries: query 'q0' .*no text"):
        collected(tmp_path / "out")
