"""Collections in BEIR layout are read as they were written, or refused with their place."""

import json

import pytest

from lwr.common.errors import BadInput
from lwr.common.json_lines import write_jsonl
from lwr.formats.beir import (
    Passage,
    answerable_queries,
    read_candidate_texts,
    read_corpus,
    read_qrels,
    read_queries,
    sample_queries,
    write_collection,
)

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


def test_collection_survives_the_round_trip(tmp_path):
    write_collection(tmp_path, iter(CORPUS), QUERIES, QRELS)
    assert list(read_corpus(tmp_path)) == CORPUS
    assert read_queries(tmp_path) == QUERIES
    assert {split: read_qrels(tmp_path, split, QUERIES) for split in QRELS} == QRELS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl", "qrels", "queries.jsonl"]


def test_split_reads_its_own_passages_and_those_of_all_splits(tmp_path):
    write_collection(tmp_path, CORPUS, QUERIES, QRELS)
    found = {split: [p.doc_id for p in read_corpus(tmp_path, split)] for split in ("train", "dev", "test")}
    assert found == {"train": ["d1", "d2"], "dev": ["d1"], "test": ["d1", "d3"]}


def test_full_text_starts_with_the_title():
    assert [passage.full_text for passage in CORPUS[:2]] == ["for all", "A title for train"]


def test_title_and_metadata_may_be_missing_or_null_or_foreign(tmp_path):
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
        ({"_id": "a b"}, "id 'a b'"),
        ({"_id": ""}, "id ''"),
        ({"_id": "\ufeffb"}, r"id '\ufeffb'"),
        ({"_id": 7}, "field '_id' is 7"),
        ({"_id": "b", "title": 7}, "field 'title' is 7"),
        ({"_id": "b", "metadata": "x"}, "field 'metadata' is 'x'"),
        ({"_id": "b", "metadata": {"split": "validation"}}, "metadata.split is 'validation'"),
    ],
)
def test_bad_passage_is_reported(tmp_path, row, says):
    lines(tmp_path / "corpus.jsonl", *(json.dumps({"text": "t"} | row) for row in [{"_id": "a"}, row]))
    with pytest.raises(BadInput) as error:
        list(read_corpus(tmp_path))
    assert f"{tmp_path / 'corpus.jsonl'}:2: {says}" in str(error.value)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"_id": "a", "text": "x"}, "id 'a' is duplicated"),
        ({"_id": "b", "text": " "}, "query 'b' has no text"),
    ],
)
def test_bad_query_is_reported(tmp_path, row, says):
    write_jsonl(tmp_path / "queries.jsonl", [{"_id": "a", "text": "x"}, row])
    with pytest.raises(BadInput, match=rf"queries\.jsonl:2: {says}"):
        read_queries(tmp_path)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("q1\td1", "2 columns"),
        ("q1 d1 1", "1 columns"),
        ("q9\td1\t1", "query 'q9'"),
        ("q1\td1\t1.5", "grade '1.5'"),
        ("q1\td1\t10001", "grade 10001"),
        ("q1\ta b\t1", "id 'a b'"),
        ("q1\td0\t1", "'q1' and 'd0' are judged twice"),
    ],
)
def test_bad_judgement_is_reported(tmp_path, line, says):
    lines(tmp_path / "qrels" / "dev.tsv", "query-id\tcorpus-id\tscore", "q1\td0\t1", line)
    with pytest.raises(BadInput) as error:
        read_qrels(tmp_path, "dev", {"q1"})
    assert f"{tmp_path / 'qrels' / 'dev.tsv'}:3: " in str(error.value)
    assert says in str(error.value)


@pytest.mark.parametrize("rows", [["q1\td1\t1"], []])
def test_qrels_without_header_are_refused(tmp_path, rows):
    lines(tmp_path / "qrels" / "dev.tsv", *rows)
    with pytest.raises(BadInput, match=r"dev\.tsv:1: .*header"):
        read_qrels(tmp_path, "dev")


@pytest.mark.parametrize(
    ("qrels", "says"),
    [
        ({"train": {"q1": {"d9": 1}}}, "1 passages judged for train .* 'd9'.*qrels/train.tsv"),
        ({"train": {"q1": {"d3": 1}}}, "'d3'"),  # d3 is only in the corpus of test
        ({"train": {"blank": {"d1": 1}}}, "'blank' .*train.* no text"),
        ({"train": {"a b": {"d1": 1}}}, "id 'a b'"),
        ({"train": {"q1": {"d1": 1}}, "dev": {}}, "no query .* dev"),
        ({"train": {"q9": {"d1": 1}}}, "'q9' .*train.* no text"),
        ({"train": {"q1": {"d1": 1}}, "test": {"q1": {"d1": 1}}}, "'q1' .*train and test"),
    ],
)
def test_inconsistent_collection_is_not_written(tmp_path, qrels, says):
    out = tmp_path / "out"
    with pytest.raises(BadInput, match=says):
        write_collection(out, CORPUS, QUERIES | {"blank": " ", "a b": "text"}, qrels)
    assert not out.exists() or not list(out.iterdir())


@pytest.mark.parametrize(
    ("passage", "says"),
    [
        (CORPUS[0], r"corpus\.jsonl:4: id 'd1' is duplicated"),
        (Passage("a b", "", "t"), r"corpus\.jsonl:4: id 'a b'"),
    ],
)
def test_bad_passage_id_is_not_written(tmp_path, passage, says):
    with pytest.raises(BadInput, match=says):
        write_collection(tmp_path / "out", [*CORPUS, passage, Passage("d9", "", "t")], QUERIES, QRELS)
    assert not list((tmp_path / "out").iterdir())


def test_different_ids_with_equal_hashes_are_not_duplicates(tmp_path, monkeypatch):
    monkeypatch.setattr("lwr.formats.beir.hash", lambda text: 7, raising=False)
    write_collection(tmp_path / "good", CORPUS, QUERIES, QRELS)
    assert list(read_corpus(tmp_path / "good")) == CORPUS
    with pytest.raises(BadInput, match=r"corpus\.jsonl:4: id 'd2' is duplicated"):
        write_collection(tmp_path / "bad", [*CORPUS, CORPUS[1]], QUERIES, QRELS)


def test_larger_sample_contains_the_smaller_one():
    ids = [f"q{i}" for i in range(100)]
    small, large = sample_queries(ids, 10), sample_queries(reversed(ids), 50)
    assert len(small) == 10
    assert small == sorted(small) != ids[:10]
    assert set(small) < set(large)
    assert sample_queries(ids, None) == sorted(ids)


def test_candidate_texts_are_those_of_the_run(tmp_path):
    write_collection(tmp_path, CORPUS, QUERIES, QRELS)
    assert read_candidate_texts(tmp_path, "train", {"q1": [("d2", 1.0)]}) == {"d2": "A title for train"}


def test_candidate_outside_the_corpus_of_the_split_is_refused(tmp_path):
    write_collection(tmp_path, CORPUS, QUERIES, QRELS)
    with pytest.raises(BadInput, match=r"corpus\.jsonl: .*'d3'"):
        read_candidate_texts(tmp_path, "train", {"q1": [("d2", 2.0), ("d3", 1.0)]})


def test_answerable_queries_have_a_grade_above_zero():
    assert answerable_queries({"q1": {"d1": 0, "d2": 1}, "q2": {"d1": 0}, "q3": {"d1": -1}}).keys() == {"q1"}
