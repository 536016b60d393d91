import pytest

from lwr.beir import Passage, write_collection
from lwr.config import Mining
from lwr.files import BadInput, read_jsonl
from lwr.mine import mine
from lwr.trec import write_run

N = 30
KEYS = {"query": str, "pos": list, "neg": list, "query_id": str, "pos_id": list, "neg_id": list}


@pytest.fixture
def collection(tmp_path):
    """30 train passages and a held-out one; `q{i}` is answered by d{i} and d{i+1}, d{i+2} is judged 0."""
    corpus = [Passage(f"d{i}", "T" if i % 2 else "", f"text {i}", "train") for i in range(N)]
    train = {f"q{i}": {f"d{i}": 1, f"d{i + 1}": 2, f"d{i + 2}": 0} for i in range(20)}
    write_collection(
        tmp_path / "collection",
        [*corpus, Passage("held", "", "out", "test")],
        {f"q{i}": f"query {i}" for i in range(21)},
        {"train": train, "test": {"q20": {"held": 1}}},
    )
    return tmp_path / "collection"


def groups_of(collection, run, **settings):
    folder = collection.parent
    write_run(
        folder / "train.run",
        {query: [(doc, -i) for i, doc in enumerate(docs)] for query, docs in run.items()},
        "t",
    )
    mine(collection, folder / "train.run", folder / "groups.jsonl", Mining(**settings))
    return {row["query_id"]: row for row in read_jsonl(folder / "groups.jsonl", KEYS)}


ALL = [f"d{i}" for i in range(N)]
RUN = {f"q{i}": ALL for i in range(20)}


def test_a_group_holds_texts_and_their_ids(collection):
    group = groups_of(collection, RUN)["q3"]
    assert group.keys() == KEYS.keys()
    assert group["query"] == "query 3"
    assert group["pos_id"] in (["d3"], ["d4"])
    for texts, ids in [("pos", "pos_id"), ("neg", "neg_id")]:
        full = [f"{'T ' if int(doc_id[1:]) % 2 else ''}text {doc_id[1:]}" for doc_id in group[ids]]
        assert group[texts] == full
    assert len(group["neg"]) == len(set(group["neg_id"])) == 7


def test_negatives_come_from_the_ranks_asked_for_and_are_never_relevant(collection):
    groups = groups_of(collection, RUN, depth=(3, 12), negatives=8)
    for i in range(20):
        assert set(groups[f"q{i}"]["neg_id"]) <= set(ALL[2:12]) - {f"d{i}", f"d{i + 1}"}
    assert any(f"d{i + 2}" in groups[f"q{i}"]["neg_id"] for i in range(12))  # judged, and not relevant


def test_too_few_candidates_are_filled_up_from_the_train_corpus(collection):
    groups = groups_of(collection, {"q1": ["d1", "d7"], "q2": ["d3"]}, negatives=20)
    for query_id, relevant in [("q1", {"d1", "d2"}), ("q2", {"d2", "d3"})]:
        negatives = groups[query_id]["neg_id"]
        assert len(set(negatives)) == 20
        assert not set(negatives) & (relevant | {"held"})
    assert groups["q1"]["neg_id"][0] == "d7"  # the hard one first


def test_a_group_depends_on_seed_and_query_alone(collection):
    groups = groups_of(collection, RUN)
    assert groups_of(collection, RUN) == groups
    assert groups_of(collection, {"q5": ALL}) == {"q5": groups["q5"]}
    apart = groups_of(
        collection, {"q18": ALL[:10], "q19": ALL[:10]}
    )  # nothing relevant here: the same choice
    assert apart["q18"]["neg_id"] != apart["q19"]["neg_id"]
    other = groups_of(collection, RUN, seed=1)
    assert sum(other[query_id]["neg_id"] != groups[query_id]["neg_id"] for query_id in RUN) > 15


def test_groups_are_a_seeded_sample(collection):
    whole = groups_of(collection, RUN)
    few = groups_of(collection, RUN, groups=6)
    assert len(few) == 6
    assert list(few) == sorted(few)
    assert all(whole[query_id] == group for query_id, group in few.items())
    assert few.keys() != groups_of(collection, RUN, groups=6, seed=1).keys()
    assert groups_of(collection, RUN, groups=100) == whole


@pytest.mark.parametrize(
    ("run", "settings", "says"),
    [
        ({"q20": ["held"]}, {}, "query 'q20' is not judged for train"),
        ({"q1": ["held"]}, {}, "passage 'held' is not in the train corpus"),
        ({"q1": ["d3"]}, {"negatives": 29}, "a corpus of 30 passages is too small for 29 negatives"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_written(collection, run, settings, says):
    with pytest.raises(BadInput, match=says):
        groups_of(collection, run, **settings)
    assert not (collection.parent / "groups.jsonl").exists()


def test_a_query_without_a_relevant_passage_makes_no_group(tmp_path):
    corpus = [Passage(f"d{i}", "", "text") for i in range(9)]
    qrels = {"train": {"q1": {"d1": 1}, "q2": {"d1": 0}}}
    write_collection(tmp_path / "collection", corpus, {"q1": "one", "q2": "two"}, qrels)
    assert groups_of(tmp_path / "collection", {"q1": ["d1"], "q2": ["d1"]}).keys() == {"q1"}
