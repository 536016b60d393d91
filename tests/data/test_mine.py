"""Training groups hold a positive and hard negatives, filled up from the corpus."""

import pytest

import lwr.data.mine
from lwr.common import progress
from lwr.common.errors import BadInput
from lwr.common.json_lines import read_jsonl
from lwr.config.data.dataset import MiningConfig
from lwr.data.mine import mine
from lwr.formats.beir import Passage, write_collection
from lwr.formats.trec import best_first, write_run

N = 30
KEYS = {
    "query": str,
    "pos": list,
    "neg": list,
    "prompt": str,
    "query_id": str,
    "pos_id": list,
    "neg_id": list,
}


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


def lines_of(collection, run, **settings):
    """The groups from a run in which each passage scores 1 less than the one before it."""
    folder = collection.parent
    write_run(
        folder / "train.run",
        {query: [(doc, -i) for i, doc in enumerate(docs)] for query, docs in run.items()},
        "t",
    )
    mine(collection, folder / "train.run", folder / "groups.jsonl", MiningConfig(**settings))
    return list(read_jsonl(folder / "groups.jsonl", KEYS))


def groups_of(collection, run, **settings):
    return {row["query_id"]: row for row in lines_of(collection, run, **settings)}


ALL = [f"d{i}" for i in range(N)]
RUN = {f"q{i}": ALL for i in range(20)}


def test_group_holds_texts_and_their_ids(collection):
    group = groups_of(collection, RUN)["q3"]
    assert group.keys() == KEYS.keys()
    assert group["query"] == "query 3"
    assert group["pos_id"] in (["d3"], ["d4"])
    for texts, ids in [("pos", "pos_id"), ("neg", "neg_id")]:
        full = [f"{'T ' if int(doc_id[1:]) % 2 else ''}text {doc_id[1:]}" for doc_id in group[ids]]
        assert group[texts] == full
    assert len(group["neg"]) == len(set(group["neg_id"])) == 7


def test_negatives_come_from_the_given_ranks_and_are_not_relevant(collection):
    groups = groups_of(collection, RUN, depth=(3, 12), negatives=8)
    for i in range(20):
        assert set(groups[f"q{i}"]["neg_id"]) <= set(ALL[2:12]) - {f"d{i}", f"d{i + 1}"}
    assert any(f"d{i + 2}" in groups[f"q{i}"]["neg_id"] for i in range(12))  # judged with grade 0


def test_group_with_too_few_candidates_is_filled_up_from_the_train_corpus(collection):
    groups = groups_of(collection, {"q1": ["d1", "d7"], "q2": ["d3"]}, negatives=20)
    for query_id, relevant in [("q1", {"d1", "d2"}), ("q2", {"d2", "d3"})]:
        negatives = groups[query_id]["neg_id"]
        assert len(set(negatives)) == 20
        assert not set(negatives) & (relevant | {"held"})
    assert groups["q1"]["neg_id"][0] == "d7"  # the hard negative comes first


def test_group_depends_on_seed_and_query_alone(collection):
    groups = groups_of(collection, RUN)
    assert groups_of(collection, RUN) == groups
    assert groups_of(collection, {"q5": ALL}) == {"q5": groups["q5"]}
    apart = groups_of(collection, {"q18": ALL[:10], "q19": ALL[:10]})  # both queries have the same candidates
    assert apart["q18"]["neg_id"] != apart["q19"]["neg_id"]
    other = groups_of(collection, RUN, seed=1)
    assert sum(other[query_id]["neg_id"] != groups[query_id]["neg_id"] for query_id in RUN) > 15


def test_number_of_groups_is_limited_by_a_seeded_sample(collection):
    complete = groups_of(collection, RUN)
    few = groups_of(collection, RUN, groups=6)
    assert len(few) == 6
    assert list(few) == sorted(few)
    assert all(complete[query_id] == group for query_id, group in few.items())
    assert few.keys() != groups_of(collection, RUN, groups=6, seed=1).keys()
    assert groups_of(collection, RUN, groups=100) == complete


@pytest.mark.parametrize(
    ("run", "settings", "says"),
    [
        ({"q20": ["held"]}, {}, r"train\.run: .*'q20'.*train"),
        ({"q1": ["held"]}, {}, r"train\.run: .*'held'.*corpus"),
        ({"q1": ["d3"]}, {"negatives": 29}, r"30 passages.*29 negatives.*mining\.negatives"),
    ],
)
def test_inconsistent_input_is_refused_and_nothing_is_written(collection, run, settings, says):
    with pytest.raises(BadInput, match=says):
        groups_of(collection, run, **settings)
    assert not (collection.parent / "groups.jsonl").exists()


def test_query_without_a_relevant_passage_makes_no_group(tmp_path):
    corpus = [Passage(f"d{i}", "", f"text {i}") for i in range(9)]
    qrels = {"train": {"q1": {"d1": 1}, "q2": {"d1": 0}}}
    write_collection(tmp_path / "collection", corpus, {"q1": "one", "q2": "two"}, qrels)
    assert groups_of(tmp_path / "collection", {"q1": ["d1"], "q2": ["d1"]}).keys() == {"q1"}


# --- several groups of one query -----------------------------------------------------------------------


def test_queries_without_candidates_are_counted(collection, capsys):
    assert groups_of(collection, {"q3": ALL, "q5": ALL}).keys() == {"q3", "q5"}
    assert (
        "18 of the 20 train queries make no group, such as 'q0': they have no candidate"
        in capsys.readouterr().err
    )


def test_samples_share_no_negative_and_positives_take_turns(collection):
    lines = lines_of(collection, RUN, samples=3, negatives=5)
    assert [line["query_id"] for line in lines] == sorted(3 * [f"q{i}" for i in range(20)])
    for i in range(0, len(lines), 3):
        negatives = [doc_id for line in lines[i : i + 3] for doc_id in line["neg_id"]]
        assert len(set(negatives)) == 15
        first, second, third = (line["pos_id"] for line in lines[i : i + 3])
        assert first == third != second


def test_first_of_two_samples_equals_a_single_sample(collection):
    assert lines_of(collection, RUN, samples=2)[::2] == lines_of(collection, RUN)


def test_only_the_first_sample_is_filled_up(collection):
    lines = lines_of(collection, {"q1": ALL[:12], "q2": ALL[:3]}, samples=9, negatives=5)
    # q1 has 10 candidates that are not relevant; q2 is filled up
    assert [line["query_id"] for line in lines] == ["q1", "q1", "q2"]
    assert all(len(line["neg_id"]) == 5 for line in lines)


def test_number_of_groups_counts_all_samples(collection):
    lines = lines_of(collection, RUN, samples=3, groups=7, negatives=5)
    assert len(lines) == 7
    assert len({line["query_id"] for line in lines}) == 3


def test_every_pass_over_queries_and_groups_shows_its_progress(collection, monkeypatch):
    passes = []

    def recording(items, total, label, unit="", **how):
        passes.append((label, total, unit))
        return progress.show_progress(items, total, label, unit, **how)

    monkeypatch.setattr(lwr.data.mine, "show_progress", recording)
    groups_of(collection, RUN, negatives=3)
    steps = [("candidates", "queries"), ("compare texts", "queries"), ("draw", "queries")]
    steps += [("fill up", "groups"), ("write", "groups")]
    assert passes == [(f"mine: {step}", 20, unit) for step, unit in steps]


# --- likely false negatives ----------------------------------------------------------------------------


def test_candidate_above_the_positive_minus_the_margin_is_not_a_negative(collection, capsys):
    run = {"q9": ["d20", "d21", "d10", "d22", "d23", "d24"], "q8": ["d8", "d1"]}  # q9 is answered by d9, too
    assert groups_of(collection, run, negatives=2, margin=1.0)["q9"]["pos_id"] == ["d10"]
    assert "2 likely false negatives dropped from 2 groups" in capsys.readouterr().err
    hard = ["d20", "d21", "d22", "d23", "d24"]
    for margin, dropped in [(-2.0, 0), (0.0, 2), (1.0, 2), (1.5, 3)]:
        negatives = groups_of(collection, run, negatives=20, margin=margin)["q9"]["neg_id"]
        assert set(negatives[: 5 - dropped]) == set(hard[dropped:])
        assert not set(negatives) & set(hard[:dropped])  # nor are they drawn from the corpus


def test_margin_drops_nothing_if_the_positive_was_not_found(collection):
    run = {"q9": ["d20", "d21", "d22"]}
    assert set(groups_of(collection, run, negatives=3, margin=100.0)["q9"]["neg_id"]) == {"d20", "d21", "d22"}


# --- a teacher -----------------------------------------------------------------------------------------


def teacher(collection, scores):
    path = collection.parent / "teacher.run"
    write_run(path, {query: best_first(docs.items()) for query, docs in scores.items()}, "teacher")
    return {"teacher_run": str(path)}


def test_teacher_scores_are_written_beside_the_texts(collection):
    by_teacher = {"q9": {"d9": 0.5, "d20": 3.25, "d21": -1.0, "d22": 0.0}}
    group = groups_of(
        collection, {"q9": ["d20", "d21", "d22"]}, negatives=3, **teacher(collection, by_teacher)
    )["q9"]
    assert group["pos_scores"] == [0.5]
    assert dict(zip(group["neg_id"], group["neg_scores"], strict=True)) == {
        "d20": 3.25,
        "d21": -1.0,
        "d22": 0.0,
    }


def test_group_holds_only_passages_that_the_teacher_scored(collection, capsys):
    run = {"q3": ALL, "q4": ALL, "q5": ALL, "q6": ALL}
    by_teacher = {
        "q3": {"d4": 1.0, "d20": 0.5, "d21": 0.25},
        "q4": {"d20": 1.0},
        "q5": {"d5": 1.0, "d6": 0.0},
    }
    groups = groups_of(collection, run, negatives=7, **teacher(collection, by_teacher))
    assert groups.keys() == {"q3"}
    assert groups["q3"]["pos_id"] == ["d4"]
    assert set(groups["q3"]["neg_id"]) == {"d20", "d21"}  # the group is not filled up
    assert "3 queries make no group" in capsys.readouterr().err


def test_margin_applies_to_the_teacher_scores(collection):
    by_teacher = {"q9": {"d9": 0.0, "d20": 3.25, "d21": -1.0, "d22": -3.0}}
    run = {"q9": ["d9", "d20", "d21", "d22"]}
    settings = {"negatives": 3, **teacher(collection, by_teacher)}
    assert groups_of(collection, run, margin=2.0, **settings)["q9"]["neg_id"] == ["d22"]
    with pytest.raises(BadInput, match=r"teacher\.run: no group"):
        groups_of(collection, run, margin=9.0, **settings)


def test_teacher_of_other_queries_is_refused(collection):
    with pytest.raises(BadInput, match=r"teacher\.run: no group.*score train candidates"):
        groups_of(collection, RUN, **teacher(collection, {"q20": {"held": 1.0}}))


# --- queries and positives under other ids -------------------------------------------------------------


def write_texts(folder, texts, queries, train):
    corpus = [Passage(doc_id, "", text) for doc_id, text in texts.items()]
    write_collection(folder / "collection", corpus, queries, {"train": train})
    return folder / "collection"


DISTINCT = {f"e{i}": f"other {i}" for i in range(6)}


def test_passage_with_the_id_of_its_query_is_not_a_negative(tmp_path, capsys):
    folder = write_texts(
        tmp_path, {"a": "food", "yes": "good food"} | DISTINCT, {"a": "food"}, {"a": {"yes": 1}}
    )
    for ranked in (["a", "e1", "yes"], ["e1"], ["a"]):
        group = groups_of(folder, {"a": ranked}, negatives=6)["a"]
        assert set(group["neg_id"]) == set(DISTINCT)
    assert "1 candidates have the id of their query" in capsys.readouterr().err


def test_query_that_is_its_own_positive_stays_a_positive(tmp_path):
    folder = write_texts(tmp_path, {"a": "food"} | DISTINCT, {"a": "food"}, {"a": {"a": 1}})
    group = groups_of(folder, {"a": ["a", "e1"]}, negatives=3)["a"]
    assert group["pos_id"] == ["a"]
    assert "a" not in group["neg_id"]


COPIES = {
    "yes": "good  food",
    "copy1": "good food",
    "copy2": " good food\n",
    "also": "fine food",
    "copy3": "fine food",
}


def test_passages_with_the_text_of_a_positive_are_not_negatives(tmp_path, capsys):
    folder = write_texts(tmp_path, COPIES | DISTINCT, {"q": "food"}, {"q": {"yes": 1, "also": 1}})
    group = groups_of(folder, {"q": ["copy1", "yes", "copy2", "copy3", "e0"]}, negatives=6)["q"]
    assert group["neg_id"][0] == "e0"
    assert set(group["neg_id"]) == set(DISTINCT)
    message = capsys.readouterr().err
    assert "3 candidates have the text of a positive" in message
    assert "random passages have the text of a passage of their group" in message


def test_passages_with_the_text_of_an_unscored_positive_are_not_negatives(tmp_path):
    folder = write_texts(tmp_path, COPIES | DISTINCT, {"q": "food"}, {"q": {"yes": 1, "also": 1}})
    by_teacher = teacher(folder, {"q": {"also": 2.0, "copy1": 1.0, "e0": 0.5}})
    assert groups_of(folder, {"q": ["copy1", "e0"]}, negatives=2, **by_teacher)["q"]["neg_id"] == ["e0"]


def test_negatives_of_a_query_differ_in_text(tmp_path, capsys):
    twins = {f"{doc_id}-twin": text for doc_id, text in DISTINCT.items()}
    folder = write_texts(tmp_path, {"yes": "good food"} | DISTINCT | twins, {"q": "food"}, {"q": {"yes": 1}})
    ranked = ["e0", "e0-twin", "e1-twin", "e1", "e2", "e2-twin"]
    first, second, *_ = lines_of(folder, {"q": ranked}, negatives=1, samples=2)
    assert first["neg"] != second["neg"]
    assert "3 candidates have the text of a better candidate" in capsys.readouterr().err
    for run in (ranked, ["e0"]):
        assert sorted(groups_of(folder, {"q": run}, negatives=6)["q"]["neg"]) == sorted(DISTINCT.values())


def test_corpus_with_too_few_texts_is_refused(tmp_path):
    texts = {f"d{i}": f"text {i % 3}" for i in range(40)}
    folder = write_texts(tmp_path, texts, {"q": "food"}, {"q": {"d0": 1}})
    assert sorted(groups_of(folder, {"q": ["d1"]}, negatives=2)["q"]["neg"]) == ["text 1", "text 2"]
    with pytest.raises(BadInput, match=r"'q': only 2 texts.*3 negatives.*mining\.negatives"):
        groups_of(folder, {"q": ["d1"]}, negatives=3)
