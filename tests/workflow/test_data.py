"""Data made elsewhere: runs in place of BM25's, groups in place of mined ones."""

from __future__ import annotations

from steps import SCORED

from lwr.files import write_jsonl


def test_a_given_run_is_retrieved_again_for_its_split_alone(house):
    (house.folder / "theirs.trec").write_text("q Q0 d 1 1.0 theirs\n")
    house.edit_config(
        lambda config: config["datasets"]["json-docs"]["first_stage"].update(runs={"test": "theirs.trec"})
    )
    plan = house.plan()
    assert [w["split"] for rule, w in plan if rule == "retrieve"] == ["test"]
    assert {rule for rule, _ in plan} == {"retrieve", *SCORED}


def test_groups_made_elsewhere_are_adopted_and_nothing_is_collected_or_mined_for_them(house):
    for name in ("a", "b"):
        write_jsonl(
            house.folder / f"theirs/{name}.jsonl", [{"query": "q", "pos": ["yes"], "neg": ["no"]}] * 9
        )
    source = {"kind": "flag_embedding", "path": "theirs"}
    house.edit_config(
        lambda config: config["datasets"].update(theirs={"source": source, "tests": ["json-docs"]})
    )
    plan = house.plan()
    assert [w["dataset"] for rule, w in plan if rule == "groups"] == ["theirs"]
    assert {rule for rule, _ in plan} == {"groups", "train", *SCORED}
    house.snakemake("--until", "groups")
    assert len((house.folder / "results/test/collections/theirs/groups.jsonl").read_text().splitlines()) == 18
    (house.folder / "theirs/b.jsonl").write_text('{"query": "q", "pos": ["yes"], "neg": ["other"]}\n')
    assert "groups" in house.rules()
