"""What runs, and what runs again: each change schedules the jobs that can feel it, and no others."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version

import pandas as pd
import pytest
from steps import DECIDED, MEASURED, READ, SCORED

from lwr.common.hashing import sha256
from lwr.formats.checkpoint import weights_fingerprint
from lwr.verify.verify import verify

pytestmark = pytest.mark.xdist_group("workflow")

CELLS = {("tiny-llama", "2"), ("tiny-llama", "4"), ("tiny-bert", "4")}


def cells(plan, rule):
    return {(w["base_model"], w["start_layer"], w["seed"]) for name, w in plan if name == rule}


def arms(plan, rule):
    """For the steps of which a cell's seeds share one."""
    return {(w["base_model"], w["start_layer"]) for name, w in plan if name == rule}


def test_the_grid_ends_in_a_table_of_every_cell_and_exit(finished):
    table = pd.read_csv(finished.folder / "results/test/tables/layers.csv", keep_default_na=False)
    exits = table[(table["layer"] > 0) & (table["exit"] != "cascade")]
    assert {(m, str(s)) for m, s in zip(exits["base_model"], exits["start_layer"], strict=True)} == CELLS
    assert list(exits[exits["base_model"] == "tiny-llama"]["layer"]) == [2, 3, 4, 4]
    assert (table["layer"] == 0).sum() == 1


def test_the_run_ends_by_printing_the_table_and_where_everything_is(finished):
    printed = (finished.folder / "printed.txt").read_text(encoding="utf-8")
    assert (finished.folder / "results/test/tables/layers.md").read_text(encoding="utf-8") in printed
    assert (finished.folder / "results/test/tables/recommendation.md").read_text(encoding="utf-8") in printed
    assert "Open results/test/report.html: " in printed
    assert "results/test/tables/" in printed


def test_every_arm_has_a_cascade_and_a_cost_and_each_file_that_people_read_is_there(finished):
    results = finished.folder / "results/test"
    for model, start in CELLS:
        arm = results / f"cells/json-docs/{model}/start{start}/default"
        decided = json.loads((arm / "cascade/json-docs.json").read_text(encoding="utf-8"))
        assert (decided["base_model"], decided["start_layer"]) == (model, int(start))
        cost = json.loads((arm / "cost/json-docs.json").read_text(encoding="utf-8"))
        assert [exit["exit"] for exit in cost["exits"]][-1] == (
            "layer_4" if decided["chosen"] == "4" else "cascade"
        )
    kinds = {"layers": ["csv", "md", "tex"], "recommendation": ["md"]}
    kinds |= {name: ["csv", "md"] for name in ("cost", "cascades", "comparisons")}
    tables = {f"{name}.{kind}" for name, endings in kinds.items() for kind in endings}
    assert {file.name for file in (results / "tables").iterdir()} == tables
    assert "quality.svg" in {file.name for file in (results / "figures").iterdir()}
    assert "Recommendation" in (results / "report.html").read_text(encoding="utf-8")


def test_a_model_says_where_it_came_from(finished):
    model = finished.folder / "results/test/cells/json-docs/tiny-llama/start2/default/seed1/model"
    came = json.loads((model / "provenance.json").read_text(encoding="utf-8"))
    assert came["base"] == {"model": "./checkpoints/tiny-llama"}
    assert came["base_fingerprint"] == weights_fingerprint(finished.folder / "checkpoints/tiny-llama")
    assert came["groups_sha256"] == sha256(
        finished.folder / "results/test/collections/json-docs/groups.jsonl"
    )
    assert (came["seed"], came["settings"]["steps"], came["processes"], came["gpu"]) == (1, 4, 1, None)
    assert came["packages"]["torch"].startswith(version("torch"))
    assert came["wall_seconds"] > 0
    assert came["peak_memory_mib"] > 100
    assert "energy_joules" in came


def test_all_that_the_grid_wrote_is_verified(finished):
    results = finished.folder / "results/test"
    verdict = verify(results)
    assert verdict.faults == verdict.notes == []
    written = {path for path in results.rglob("*") if path.is_file()} - set((results / "logs").rglob("*"))
    assert verdict.files == len(written)


def test_a_second_run_does_nothing(finished):
    assert finished.plan() == []


def test_without_one_cells_scores_only_what_follows_from_them_runs(project):
    shutil.rmtree(project.folder / "results/test/cells/json-docs/tiny-bert/start4/default/seed1/scores")
    plan = project.plan()
    assert {rule for rule, _ in plan} == SCORED
    assert cells(plan, "score") == cells(plan, "evaluate") == {("tiny-bert", "4", "1")}
    assert arms(plan, "cascade") == arms(plan, "cost") == {("tiny-bert", "4")}


def test_a_lost_report_is_made_again_alone(project):
    (project.folder / "results/test/report.html").unlink()
    assert project.rules() == {"report"}


def test_one_more_seed_trains_only_its_own_cells(project):
    project.edit_config(lambda config: config["seeds"].append(2))
    plan = project.plan()
    assert {rule for rule, _ in plan} == {"train", *SCORED}
    for rule in ("train", "score"):
        assert cells(plan, rule) == {(model, start, "2") for model, start in CELLS}
    # a cascade is chosen for all seeds together, and each seed measures it
    assert cells(plan, "evaluate") == {(*cell, seed) for cell in CELLS for seed in "12"}
    assert arms(plan, "cascade") == arms(plan, "cost") == CELLS


@pytest.mark.slow
def test_the_same_seed_gives_the_same_tables(finished, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(finished.folder, again, ignore=shutil.ignore_patterns("results", ".snakemake"))
    other = type(finished)(again)
    other.snakemake()
    assert other.tables() == finished.tables()


def test_a_touched_source_file_reruns_nothing(project):
    (project.folder / "lwr/training/loss.py").touch()
    (project.folder / "config/test.yaml").touch()
    assert project.plan() == []


@pytest.mark.parametrize(
    ("module", "steps"),
    [
        ("formats/trec", {"retrieve", "mine", "train", *SCORED}),  # a low floor, under nearly all
        ("training/loss", {"train", *SCORED}),
        ("evaluation/cascade", DECIDED),
        ("reporting/tables", READ),
        ("reporting/advise", {"advise", "report"}),
        ("cli/app", set()),
        ("verify/verify", set()),
    ],
)
def test_a_real_edit_reruns_the_steps_that_import_it_and_what_follows(project, module, steps):
    with (project.folder / f"lwr/{module}.py").open("a", encoding="utf-8") as source:
        source.write("\nEDITED = True\n")
    assert project.rules() == steps


def test_rewording_and_a_new_version_rerun_nothing(project):
    def edit(module: str, old: str, new: str) -> None:
        file = project.folder / f"lwr/{module}.py"
        text = file.read_text(encoding="utf-8")
        assert old in text
        file.write_text(text.replace(old, new), encoding="utf-8")

    edit("training/loss", '"""The layerwise loss', '"""A docstring that was reworded. The layerwise loss')
    edit("training/loss", "no_teacher =", "# a comment\n    no_teacher =")
    edit("config/config", 'description="peak learning rate', 'description="reworded: peak learning rate')
    edit(
        "evaluation/compare", '"""Means of equal numbers', '"""Reworded: means of equal numbers'
    )  # of an attribute
    metadata = project.folder / "lwr-9.9.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: lwr\nVersion: 9.9\n", encoding="utf-8")
    assert project.plan() == []


def test_another_base_models_settings_retrain_its_cells_alone(project):
    project.edit_config(lambda config: config["base_models"]["tiny-bert"].update(pooling="first"))
    plan = project.plan()
    assert cells(plan, "train") == cells(plan, "score") == {("tiny-bert", "4", "1")}
    assert {rule for rule, _ in plan} == {"base", "train", *SCORED}


def test_an_added_start_layer_trains_only_its_own_cells(project):
    project.edit_config(lambda config: config["start_layers"].append(3))
    plan = project.plan()
    assert cells(plan, "train") == cells(plan, "score") == {("tiny-llama", "3", "1")}


def test_another_measure_only_measures_again(project):
    project.edit_config(lambda config: config["measures"].append("P@1"))
    assert project.rules() == MEASURED


@pytest.mark.parametrize(
    ("section", "values", "steps"),
    [
        ("cost", {"queries": 1}, {"cost", *READ} - {"compare"}),
        ("margin", 0.5, READ - {"tables"}),
    ],
)
def test_another_setting_of_a_late_step_reruns_it_and_what_follows(project, section, values, steps):
    project.edit_config(lambda config: config.update({section: values}))
    assert project.rules() == steps


@pytest.mark.slow
def test_shards_give_the_same_tables(finished, project):
    project.edit_config(lambda config: config.update(score={"shards": 3}))
    shards, splits = 3, 2  # dev and test
    assert sum(rule == "score" for rule, _ in project.plan()) == shards * splits * len(CELLS)
    project.snakemake()
    assert project.tables() == finished.tables()


@pytest.mark.parametrize("name", ["report.zip", "report.html"])
def test_snakemakes_own_report_holds_the_tables(project, name):
    project.snakemake("--report", name)
    assert (project.folder / name).stat().st_size > 10_000


def test_a_failed_run_ends_in_the_list_of_what_failed(project):
    shutil.rmtree(project.folder / "results/test/cells/json-docs/tiny-llama")
    (project.folder / "checkpoints/tiny-llama/model.safetensors").write_bytes(b"cut short")
    run = project.snakemake("--keep-going", check=False)
    assert run.returncode != 0
    listed = (run.stdout + run.stderr).partition("What failed, and its log:\n")[2].splitlines()[:2]
    logs = [
        f"  train  results/test/logs/train/json-docs/tiny-llama/start{k}/default/seed1.log" for k in (2, 4)
    ]
    assert sorted(listed) == logs
