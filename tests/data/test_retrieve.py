"""Candidates come from BM25 or from a given run."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lwr.common.errors import BadInput
from lwr.config.data.first_stage import Bm25FirstStage
from lwr.data.retrieve import retrieve
from lwr.data.words import tokenizer_of
from lwr.formats.beir import Passage, write_collection
from lwr.formats.trec import read_run

tokenize = tokenizer_of("english")
CORPUS = [
    Passage("cats", "", "cats purr and cats sleep"),
    Passage("cat", "", "a cat among many dogs, birds, horses and other animals"),
    Passage("titled", "Zebras", "stripes"),
    Passage("heldout", "", "cats cats cats", "test"),
    *[Passage(f"twin{i}", "", "identical twins") for i in range(6)],
]
QUERIES = {
    "q-cat": "sleeping cat",
    "q-zebra": "zebra",
    "q-twin": "twin",
    "q-none": "xylophone",
    "q-stop": "the of",
}
QRELS = {"dev": {query_id: {"cat": 1} for query_id in QUERIES}, "test": {"q-test": {"heldout": 1}}}


@pytest.fixture
def collection(tmp_path):
    write_collection(tmp_path / "collection", CORPUS, QUERIES | {"q-test": "cat"}, QRELS)
    return tmp_path / "collection"


def run_of(collection, split="dev", **settings):
    out = collection.parent / f"{split}.run"
    retrieve(collection, out, split, Bm25FirstStage(**settings))
    return read_run(out)


def test_words_are_stemmed_and_the_best_match_comes_first(collection):
    run = run_of(collection)
    assert [doc_id for doc_id, _ in run["q-cat"]] == ["cats", "cat"]
    assert [doc_id for doc_id, _ in run["q-zebra"]] == ["titled"]  # found by its title


def test_split_searches_its_own_corpus(collection):
    assert "heldout" not in dict(run_of(collection)["q-cat"])
    assert run_of(collection, "test")["q-test"][0][0] == "heldout"


def test_query_without_a_match_has_no_line(collection):
    assert run_of(collection).keys() == {"q-cat", "q-zebra", "q-twin"}


def test_ties_are_cut_in_the_same_order_for_any_number_of_candidates(collection):
    runs = {
        top_k: [doc_id for doc_id, _ in run_of(collection, depth=top_k)["q-twin"]] for top_k in (2, 4, 100)
    }
    assert [len(run) for run in runs.values()] == [2, 4, 6]
    assert runs[2] == runs[100][:2]
    assert runs[4] == runs[100][:4]
    assert runs[100] != sorted(runs[100])


def test_bm25_parameters_change_scores(collection):
    assert run_of(collection, k1=0.9)["q-cat"] != run_of(collection, k1=2.0)["q-cat"]
    assert run_of(collection, b=0.0)["q-cat"] != run_of(collection, b=1.0)["q-cat"]


def test_scores_are_those_of_lucene(collection):
    n, length, mean = 9, 1, (4 + 6 + 2 + 6 * 2) / 9
    [(_, score)] = run_of(collection, k1=0.9, b=0.4)["q-zebra"]
    length = len(tokenize("Zebras stripes"))
    corpus = [p.full_text for p in CORPUS if p.split is None]
    mean = sum(len(tokenize(text)) for text in corpus) / n
    expected = np.log(1 + (n - 1 + 0.5) / 1.5) / (1 + 0.9 * (1 - 0.4 + 0.4 * length / mean))
    assert score == pytest.approx(expected, rel=1e-5)


def test_run_does_not_depend_on_the_hash_seed_of_python(collection):
    # the order of a set of words depends on it
    runs = []
    for seed in ("1", "2"):
        out = collection.parent / f"seed{seed}.run"
        code = (
            "from pathlib import Path; from lwr.config.data.first_stage import Bm25FirstStage; "
            "from lwr.data.retrieve import retrieve; "
            f"retrieve(Path({str(collection)!r}), Path({str(out)!r}), 'dev', Bm25FirstStage())"
        )
        subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONHASHSEED": seed})
        runs.append(out.read_bytes())
    assert runs[0] == runs[1]


def test_corpus_without_words_is_refused(tmp_path):
    write_collection(tmp_path / "c", [Passage("d", "", "the")], {"q": "word"}, {"dev": {"q": {"d": 1}}})
    with pytest.raises(BadInput, match="corpus of dev has no words"):
        retrieve(tmp_path / "c", tmp_path / "run", "dev", Bm25FirstStage())


def given(folder, *lines):
    (folder / "given.trec").write_text("".join(f"{line} theirs\n" for line in lines))
    return {"runs": {"dev": str(folder / "given.trec")}}


def test_given_run_replaces_bm25_and_keeps_its_tag(collection, tmp_path):
    runs = given(
        tmp_path, "q-stop Q0 twin1 1 5", "q-stop Q0 cat 2 9.5", "q-stop Q0 titled 3 -1", "q-cat 0 cat 7 0"
    )
    run = run_of(collection, **runs, depth=2)
    assert run == {"q-cat": [("cat", 0.0)], "q-stop": [("cat", 9.5), ("twin1", 5.0)]}
    assert (tmp_path / "dev.run").read_text().splitlines()[0] == "q-cat Q0 cat 1 0.0 theirs"
    assert "heldout" in dict(run_of(collection, "test", **runs)["q-test"])  # no run is given for test: BM25


def test_ties_of_a_given_run_are_broken_by_our_rule(collection, tmp_path):
    twins = [f"q-twin Q0 twin{i} {i + 1} 2.5" for i in range(6)]
    runs = given(tmp_path, *twins)
    ranked = run_of(collection, **runs, depth=3)["q-twin"]
    assert run_of(collection, **given(tmp_path, *reversed(twins)), depth=3)["q-twin"] == ranked
    assert len({score for _, score in ranked}) == 3


def test_other_queries_of_a_given_run_are_ignored_and_counted(collection, tmp_path, capsys):
    runs = given(tmp_path, "q-cat Q0 cat 1 5", "q-test Q0 heldout 1 5", "else Q0 where 1 5")
    assert run_of(collection, **runs).keys() == {"q-cat"}
    assert "given.trec: 1 of the 5 queries of dev, 2 other queries ignored" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("q-cat Q0 cat 1 5 6", r"given\.trec:1: .*7 columns"),
        ("elsewhere Q0 cat 1 5", r"given\.trec: .*none of the 5 queries of dev"),
        ("q-cat Q0 heldout 1 5", r"given\.trec: 1 passages .*corpus of dev.*'heldout'"),
    ],
)
def test_given_run_that_does_not_fit_is_refused(collection, tmp_path, line, says):
    with pytest.raises(BadInput, match=says):
        run_of(collection, **given(tmp_path, line))
    assert not (tmp_path / "dev.run").exists()


# --- queries that are passages, queries without candidates -----------------------------------------------


@pytest.fixture
def arguments(tmp_path):
    """Write a collection whose queries are passages, as in ArguAna; the query `same` is answered by `same`."""
    topics = {"a": "vegetarian food", "b": "free speech", "c": "school uniforms", "same": "nuclear energy"}
    corpus = [Passage(name, "", topic) for name, topic in topics.items()]
    corpus += [
        Passage(f"{name}-{i}", "", f"{topic} without reason")
        for name, topic in topics.items()
        for i in (1, 2)
    ]
    qrels = {name: {f"{name}-1": 1} for name in "abc"} | {"same": {"same": 1}}
    write_collection(tmp_path / "collection", corpus, topics, {"dev": qrels})
    return tmp_path / "collection"


def test_candidate_with_the_id_of_its_query_is_left_out_unless_relevant(arguments, capsys):
    run = run_of(arguments, depth=2)
    assert {query: {doc for doc, _ in ranked} for query, ranked in run.items()} == {
        "a": {"a-1", "a-2"},  # the passage at the next rank takes the place
        "b": {"b-1", "b-2"},
        "c": {"c-1", "c-2"},
        "same": {"same", run["same"][1][0]},
    }
    message = capsys.readouterr().err
    assert "3 candidates of dev have the id of their query, such as 'a'" in message
    assert "first_stage.keep_same_id" in message


def test_candidates_with_the_id_of_their_query_are_kept_on_request(arguments, capsys):
    run = run_of(arguments, keep_same_id=True)
    assert [run[query][0][0] for query in ("a", "b", "c")] == ["a", "b", "c"]
    assert "keep_same_id" not in capsys.readouterr().err


def test_given_run_loses_candidates_with_the_id_of_their_query(arguments, tmp_path, capsys):
    runs = given(tmp_path, "a Q0 a 1 9", "a Q0 a-1 2 8", "a Q0 a-2 3 7", "same Q0 same 1 9", "b Q0 b 1 1")
    assert run_of(arguments, **runs, depth=2) == {"a": [("a-1", 8.0), ("a-2", 7.0)], "same": [("same", 9.0)]}
    message = capsys.readouterr().err
    assert "2 candidates of dev have the id of their query" in message
    assert "2 of the 4 queries of dev (50%) have no candidate, such as 'b', 'c'" in message
    assert run_of(arguments, **runs, depth=2, keep_same_id=True)["a"][0] == ("a", 9.0)


def test_queries_without_candidates_are_counted(collection, capsys):
    run_of(collection)
    message = "WARNING: 2 of the 5 queries of dev (40%) have no candidate, such as 'q-none', 'q-stop'"
    assert message in capsys.readouterr().err
    run_of(collection, "test")
    assert "no candidate" not in capsys.readouterr().err


def test_split_without_any_candidate_is_refused(tmp_path):
    corpus = [Passage("d0", "", "量子计算是一种计算方式。"), Passage("d1", "", "北京的天气今天晴朗。")]
    queries = {"q0": "什么是量子计算", "q1": "北京的天气怎么样"}
    write_collection(tmp_path / "collection", corpus, queries, {"dev": {"q0": {"d0": 1}, "q1": {"d1": 1}}})
    with pytest.raises(
        BadInput, match=r"2 of the 2 queries of dev \(100%\) .*english.*first_stage\.language"
    ):
        run_of(tmp_path / "collection")
    assert not (tmp_path / "dev.run").exists()
    runs = given(tmp_path, "q0 Q0 d0 1 1")
    assert run_of(tmp_path / "collection", **runs) == {"q0": [("d0", 1.0)]}


def test_given_run_of_the_queries_themselves_is_refused(arguments, tmp_path):
    with pytest.raises(BadInput, match=r"4 of the 4 queries of dev \(100%\) have no candidate.*given\.trec"):
        run_of(arguments, **given(tmp_path, "a Q0 a 1 9"))


def test_given_run_may_be_an_archive(collection, tmp_path):
    plain = Path(given(tmp_path, "q-cat Q0 cat 1 5")["runs"]["dev"])
    archive = tmp_path / "given.trec.gz"
    archive.write_bytes(gzip.compress(plain.read_bytes()))
    assert run_of(collection, runs={"dev": str(archive)}) == {"q-cat": [("cat", 5.0)]}
