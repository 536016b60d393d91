import os
import subprocess
import sys

import numpy as np
import pytest

from lwr.beir import Passage, write_collection
from lwr.config import FirstStage
from lwr.files import BadInput
from lwr.retrieve import candidates, retrieve, words
from lwr.trec import read_run

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
    retrieve(collection, out, split, FirstStage(**settings))
    return read_run(out)


def test_words_are_stemmed_and_the_best_match_comes_first(collection):
    run = run_of(collection)
    assert [doc_id for doc_id, _ in run["q-cat"]] == ["cats", "cat"]
    assert [doc_id for doc_id, _ in run["q-zebra"]] == ["titled"]  # found by its title


def test_a_split_searches_its_own_corpus(collection):
    assert "heldout" not in dict(run_of(collection)["q-cat"])
    assert run_of(collection, "test")["q-test"][0][0] == "heldout"


def test_a_query_that_matches_nothing_has_no_line(collection):
    assert run_of(collection).keys() == {"q-cat", "q-zebra", "q-twin"}


def test_depth_cuts_ties_the_same_way_at_every_depth(collection):
    runs = {
        depth: [doc_id for doc_id, _ in run_of(collection, depth=depth)["q-twin"]] for depth in (2, 4, 100)
    }
    assert [len(run) for run in runs.values()] == [2, 4, 6]
    assert runs[2] == runs[100][:2]
    assert runs[4] == runs[100][:4]
    assert runs[100] != sorted(runs[100])


def test_bm25_parameters_count(collection):
    assert run_of(collection, k1=0.9)["q-cat"] != run_of(collection, k1=2.0)["q-cat"]
    assert run_of(collection, b=0.0)["q-cat"] != run_of(collection, b=1.0)["q-cat"]


def test_scores_are_lucenes(collection):
    n, length, mean = 9, 1, (4 + 6 + 2 + 6 * 2) / 9
    [(_, score)] = run_of(collection, k1=0.9, b=0.4)["q-zebra"]
    length = len(words(["Zebras stripes"])[0])
    corpus = [p.full_text for p in CORPUS if p.split is None]
    mean = sum(map(len, words(corpus))) / n
    expected = np.log(1 + (n - 1 + 0.5) / 1.5) / (1 + 0.9 * (1 - 0.4 + 0.4 * length / mean))
    assert score == pytest.approx(expected, rel=1e-5)


def test_the_run_does_not_depend_on_the_process(collection):
    # Python's string hashes do, and bm25s numbers its vocabulary in the order of a set
    runs = []
    for seed in ("1", "2"):
        out = collection.parent / f"seed{seed}.run"
        code = (
            "from pathlib import Path; from lwr.config import FirstStage; from lwr.retrieve import retrieve; "
            f"retrieve(Path({str(collection)!r}), Path({str(out)!r}), 'dev', FirstStage())"
        )
        subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONHASHSEED": seed})
        runs.append(out.read_bytes())
    assert runs[0] == runs[1]


def test_a_corpus_without_words_is_an_error(tmp_path):
    write_collection(tmp_path / "c", [Passage("d", "", "the")], {"q": "word"}, {"dev": {"q": {"d": 1}}})
    with pytest.raises(BadInput, match="the corpus of dev holds no words"):
        retrieve(tmp_path / "c", tmp_path / "run", "dev", FirstStage())


def test_candidates_keep_all_that_tie_with_the_last():
    scores = np.array([0, 3, 1, 2, 2, 0, 2], dtype=np.float32)
    assert candidates(scores, 2).tolist() == [1, 3, 4, 6]
    assert candidates(scores, 10).tolist() == [1, 2, 3, 4, 6]
