"""Runs given in place of BM25's, and training groups given in place of mined ones."""

from __future__ import annotations

import pytest
from project import FROM_SCORE

from lwr.common.json_lines import write_jsonl

pytestmark = pytest.mark.xdist_group("workflow")


def test_given_run_reruns_retrieve_for_its_split_only(project):
    (project.folder / "theirs.trec").write_text("q Q0 d 1 1.0 theirs\n")
    project.edit_config(
        lambda config: config["datasets"]["json-docs"]["first_stage"].update(runs={"test": "theirs.trec"})
    )
    plan = project.plan()
    assert [w["split"] for rule, w in plan if rule == "retrieve"] == ["test"]
    assert {rule for rule, _ in plan} == {"retrieve", *FROM_SCORE} - {"fuse"}  # weights come from dev


def test_given_groups_need_no_collection_and_no_mining(project):
    for name in ("a", "b"):
        write_jsonl(
            project.folder / f"theirs/{name}.jsonl", [{"query": "q", "pos": ["yes"], "neg": ["no"]}] * 9
        )
    source = {"kind": "flag_embedding", "path": "theirs"}
    project.edit_config(
        lambda config: config["datasets"].update(theirs={"source": source, "tests": ["json-docs"]})
    )
    plan = project.plan()
    assert [w["dataset"] for rule, w in plan if rule == "groups"] == ["theirs"]
    assert {rule for rule, _ in plan} == {"groups", "train", *FROM_SCORE}
    project.snakemake("--until", "groups")
    assert len((project.results / "collections/theirs/groups.jsonl").read_text().splitlines()) == 18
    (project.folder / "theirs/b.jsonl").write_text('{"query": "q", "pos": ["yes"], "neg": ["other"]}\n')
    assert "groups" in project.planned_rules()
