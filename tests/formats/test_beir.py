import json

import pytest

from lwr.common.errors import BadInput
from lwr.common.json_lines import write_jsonl
from lwr.formats.beir import Passage, read_corpus, read_qrels, read_queries, sample_queries, write_collection

CORPUS = [
    Passage("d1", "", "for all"),
    Passage("d2", "A title", "for train", "train"),
    Passage("d3", "", "for test", "test"),
]
QUERIES = {"q1": "one", "q2": "two"}
QRELS = {"train": {"q1": {"d2": 2, "d1": 0}}, "test": {"q2": {"d3": 1, "d1": -1}}}


def lines(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


def test_a_collection_survives_the_round_trip(tmp_path):
    write_collection(tmp_path, iter(CORPUS), QUERIES, QRELS)
    assert list(read_corpus(tmp_path)) == CORPUS
    assert read_queries(tmp_path) == QUERIES
    assert {split: read_qrels(tmp_path, split, QUERIES) for split in QRELS} == QRELS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl", "qrels", "queries.jsonl"]


def test_a_split_searches_its_own_passages_and_those_of_all(tmp_path):
    write_collection(tmp_path, CORPUS, QUERIES, QRELS)
    found = {split: [p.doc_id for p in read_corpus(tmp_path, split)] for split in ("train", "dev", "test")}
    assert found == {"train": ["d1", "d2"], "dev": ["d1"], "test": ["d1", "d3"]}


def test_the_title_is_searched_where_there_is_one():
    assert [passage.full_text for passage in CORPUS[:2]] == ["for all", "A title for train"]


def test_title_and_metadata_may_be_missing_null_or_someone_elses(tmp_path):
    rows = [
        {"_id": "1"},
        {"_id": "2", "title": None, "metadata": None},
        {"_id": "3", "metadata": {"url": "x"}},
    ]
    write_jsonl(tmp_path / "corpus.jsonl", [row | {"text": "t"} for row in rows])
    assert list(read_corpus(tmp_path)) == [Passage(str(i), "", "t") for i in (1, 2, 3)]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"_id": "a b"}, "id 'a b' is empty or holds whitespace"),
        ({"_id": ""}, "id '' is empty"),
        ({"_id": "\ufeffb"}, r"id '\ufeffb' is empty or holds"),
        ({"_id": 7}, "field '_id' is 7; make it a string"),
        ({"_id": "b", "title": 7}, "field 'title' is 7"),
        ({"_id": "b", "metadata": "x"}, "field 'metadata' is 'x'"),
        ({"_id": "b", "metadata": {"split": "validation"}}, "metadata.split is 'validation'"),
    ],
)
def test_a_bad_passage_is_named(tmp_path, row, says):
    lines(tmp_path / "corpus.jsonl", *(json.dumps({"text": "t"} | row) for row in [{"_id": "a"}, row]))
    with pytest.raises(BadInput) as error:
        list(read_corpus(tmp_path))
    assert f"{tmp_path / 'corpus.jsonl'}:2: {says}" in str(error.value)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"_id": "a", "text": "x"}, "id 'a' stands twice"),
        ({"_id": "b", "text": " "}, "query 'b' has no text"),
    ],
)
def test_a_bad_query_is_named(tmp_path, row, says):
    write_jsonl(tmp_path / "queries.jsonl", [{"_id": "a", "text": "x"}, row])
    with pytest.raises(BadInput, match=f"queries.jsonl:2: {says}"):
        read_queries(tmp_path)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("q1\td1", "has 2 columns"),
        ("q1 d1 1", "has 1 columns"),
        ("q9\td1\t1", "query 'q9' is not in queries.jsonl"),
        ("q1\td1\t1.0", "grade '1.0' is not a whole number"),
        ("q1\td0\t1", "'q1' and 'd0' are judged twice"),
    ],
)
def test_a_bad_judgement_is_named(tmp_path, line, says):
    lines(tmp_path / "qrels" / "dev.tsv", "query-id\tcorpus-id\tscore", "q1\td0\t1", line)
    with pytest.raises(BadInput) as error:
        read_qrels(tmp_path, "dev", {"q1"})
    assert f"{tmp_path / 'qrels' / 'dev.tsv'}:3: " in str(error.value)
    assert says in str(error.value)


@pytest.mark.parametrize("rows", [["q1\td1\t1"], []])
def test_qrels_without_header_are_refused(tmp_path, rows):
    lines(tmp_path / "qrels" / "dev.tsv", *rows)
    with pytest.raises(BadInput, match=r"dev.tsv:1: no header"):
        read_qrels(tmp_path, "dev")


@pytest.mark.parametrize(
    ("qrels", "says"),
    [
        ({"train": {"q1": {"d9": 1}}}, "1 passages judged for train are not in its corpus, as 'd9'"),
        ({"train": {"q1": {"d3": 1}}}, "judged for train are not in its corpus"),  # d3 is in test's alone
        ({"train": {"blank": {"d1": 1}}}, "'blank' is judged for train but has no text"),
        ({"train": {"a b": {"d1": 1}}}, "id 'a b' is empty or holds whitespace"),
        ({"train": {"q1": {"d1": 1}}, "dev": {}}, "no query is left for dev"),
        ({"train": {"q9": {"d1": 1}}}, "'q9' is judged for train but has no text"),
        ({"train": {"q1": {"d1": 1}}, "test": {"q1": {"d1": 1}}}, "judged for train and test"),
    ],
)
def test_a_collection_that_does_not_fit_together_is_not_written(tmp_path, qrels, says):
    out = tmp_path / "out"
    with pytest.raises(BadInput, match=says):
        write_collection(out, CORPUS, QUERIES | {"blank": " ", "a b": "text"}, qrels)
    assert not out.exists() or not list(out.iterdir())


@pytest.mark.parametrize(
    ("passage", "says"),
    [
        (CORPUS[0], "corpus.jsonl:4: id 'd1' stands twice"),
        (Passage("a b", "", "t"), "corpus.jsonl:4: id 'a b' is empty or holds whitespace"),
    ],
)
def test_a_bad_id_is_found_when_a_corpus_is_written(tmp_path, passage, says):
    with pytest.raises(BadInput, match=says):
        write_collection(tmp_path / "out", [*CORPUS, passage, Passage("d9", "", "t")], QUERIES, QRELS)
    assert not list((tmp_path / "out").iterdir())


def test_ids_with_the_same_hash_are_two_ids(tmp_path, monkeypatch):
    monkeypatch.setattr("lwr.formats.beir.hash", lambda text: 7, raising=False)
    write_collection(tmp_path / "good", CORPUS, QUERIES, QRELS)
    assert list(read_corpus(tmp_path / "good")) == CORPUS
    with pytest.raises(BadInput, match=r"corpus\.jsonl:4: id 'd2' stands twice"):
        write_collection(tmp_path / "bad", [*CORPUS, CORPUS[1]], QUERIES, QRELS)


def test_a_sample_of_queries_grows_without_changing():
    ids = [f"q{i}" for i in range(100)]
    small, large = sample_queries(ids, 10), sample_queries(reversed(ids), 50)
    assert len(small) == 10
    assert small == sorted(small) != ids[:10]
    assert set(small) < set(large)
    assert sample_queries(ids, None) == sorted(ids)
