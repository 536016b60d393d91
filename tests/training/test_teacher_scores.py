"""Tests of the join of a teacher's run to training groups, and of trainings that use it."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny

from lwr.common.errors import BadInput
from lwr.common.hashing import sha256
from lwr.common.json_lines import read_json, write_jsonl
from lwr.config.model import BaseModelConfig, PromptTemplate
from lwr.config.training import TrainingConfig
from lwr.formats.beir import Passage, write_collection
from lwr.formats.trec import write_run
from lwr.model.prompt import Prompt
from lwr.training.dataset import read_groups
from lwr.training.teacher_scores import join_teacher_scores
from lwr.training.train import train

SETTINGS = {"steps": 1, "groups_per_batch": 2, "group_size": 3, "query_max_len": 16, "passage_max_len": 48}
TEMPLATE = PromptTemplate(query="{query}", passage="{passage}", after=["?"])
SCORES = {f"q{i}": [(f"d{j}", float(5 * i - j)) for j in range(8)] for i in range(4)}


def group(i: int, **others) -> dict:
    """Return the group of query i: d{i} answers it, and the next three passages do not."""
    ids = [f"d{j}" for j in range(i, i + 4)]
    texts = [f"text of {doc_id}" for doc_id in ids]
    line = {"query": f"number {i}", "pos": texts[:1], "neg": texts[1:]}
    return line | {"query_id": f"q{i}", "pos_id": ids[:1], "neg_id": ids[1:]} | others


@pytest.fixture
def run(tmp_path):
    """Return a function that writes a run with these scores."""

    def write(scores: dict) -> Path:
        write_run(tmp_path / "teacher.trec", scores, "teacher")
        return tmp_path / "teacher.trec"

    return write


def joined(groups: list[dict], run: Path) -> dict[int, dict]:
    return dict(join_teacher_scores(enumerate(groups, start=1), Path("groups.jsonl"), run))


def test_scores_are_joined_by_query_and_passage(run, capsys):
    lines = joined([group(i) for i in range(4)], run(SCORES))
    assert list(lines) == [1, 2, 3, 4]
    assert lines[3]["pos_scores"] == [8.0]
    assert lines[3]["neg_scores"] == [7.0, 6.0, 5.0]
    assert {key: lines[3][key] for key in group(2)} == group(2)
    assert capsys.readouterr().err == ""


def test_scores_in_the_groups_are_replaced(run):
    lines = joined([group(0, pos_scores=[9.0], neg_scores=[9.0, 9.0, 9.0])], run(SCORES))
    assert (lines[1]["pos_scores"], lines[1]["neg_scores"]) == ([0.0], [-1.0, -2.0, -3.0])


def test_passages_without_a_score_are_left_out_and_counted(run, capsys):
    scores = {
        "q0": [("d0", 3.0), ("d2", 1.0)],
        "q1": [("d2", 3.0)],  # not the positive
        "q2": [("d2", 3.0)],  # no negative
    }
    lines = joined([group(i) for i in range(4)], run(scores))
    assert list(lines) == [1]
    assert (lines[1]["neg"], lines[1]["neg_id"], lines[1]["neg_scores"]) == (["text of d2"], ["d2"], [1.0])
    assert "12 of 16 passages, which are left out, and 3 of 4 groups" in capsys.readouterr().err


def test_run_of_other_queries_is_refused(run):
    with pytest.raises(BadInput, match=r"teacher\.trec: scores no positive with a negative of the 2 groups"):
        joined([group(0), group(1)], run({"other": [("d0", 1.0)]}))


def test_groups_without_ids_are_refused(run):
    without = {key: value for key, value in group(1).items() if key != "neg_id"}
    with pytest.raises(BadInput, match=r"groups\.jsonl:2: no field 'neg_id'"):
        joined([group(0), without], run(SCORES))


def test_draws_do_not_depend_on_groups_that_are_left_out(run, tmp_path):
    prompt = Prompt(tiny.tokenizer(encoder=False), TEMPLATE)
    write_jsonl(tmp_path / "groups.jsonl", [group(i) for i in range(4)])
    complete = read_groups(tmp_path / "groups.jsonl", prompt, 3, seed=1, teacher_run=run(SCORES))
    without_q1 = {query: docs for query, docs in SCORES.items() if query != "q1"}
    fewer = read_groups(tmp_path / "groups.jsonl", prompt, 3, seed=1, teacher_run=run(without_q1))
    assert fewer == [complete[0], *complete[2:]]
    assert complete[2].teacher_scores is not None
    assert complete[2].teacher_scores[0] == 8.0


# --- training ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    queries = {f"q{i}": f"number {i}" for i in range(6)}
    corpus = [Passage(f"d{i}", "", f"text of d{i}") for i in range(8)]
    write_collection(folder, corpus, queries, {"dev": {"q5": {"d5": 1}}})
    write_run(folder / "dev.trec", {"q5": [("d5", 1.0)]}, "tiny")
    write_jsonl(folder / "groups.jsonl", [group(i) for i in range(4)])
    tiny.save("llama", folder / "llama")
    return folder


def trained(data: Path, out: Path, external: bool | str, teacher_run: Path | None, **settings) -> Path:
    settings = SETTINGS | settings | {"distillation": {"external": external}}
    base = BaseModelConfig(model=str(data / "llama"), template=TEMPLATE)
    files = (data / "groups.jsonl", data, data / "dev.trec")
    train(base, 2, TrainingConfig.model_validate(settings), *files, seed=1, out=out, teacher_run=teacher_run)
    return out


def test_loss_of_teacher_scores_learns_from_a_named_teacher(data, run, tmp_path):
    teacher_run = run(SCORES)
    model = trained(data, tmp_path / "model", "mine", teacher_run, loss="mse")
    assert read_json(model / "provenance.json", {})["teacher_sha256"] == {"mine": sha256(teacher_run)}
    first = (model / "training.jsonl").read_text(encoding="utf-8")
    other = trained(
        data, tmp_path / "other", "mine", run({q: d[::-1] for q, d in _negated().items()}), loss="mse"
    )
    assert (other / "training.jsonl").read_text(encoding="utf-8") != first


def _negated() -> dict[str, list[tuple[str, float]]]:
    return {query: [(doc, -score) for doc, score in docs] for query, docs in SCORES.items()}


@pytest.mark.parametrize(("external", "has_run"), [("mine", False), (True, True), (False, True)])
def test_name_of_a_teacher_and_its_run_belong_together(data, run, tmp_path, external, has_run):
    with pytest.raises(BadInput, match="give the name of a teacher and its run"):
        trained(data, tmp_path / "model", external, run(SCORES) if has_run else None)
    assert not (tmp_path / "model").exists()
