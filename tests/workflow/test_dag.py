"""Which jobs run and which run again: a change schedules the jobs that depend on it, and no others."""

from __future__ import annotations

import json
import re
import shutil
from importlib.metadata import version

import pandas as pd
import pytest
from project import FROM_CASCADE, FROM_EVALUATE, FROM_FUSE, FROM_SCORE, REPORTING_STEPS, Project

from lwr.common.hashing import sha256
from lwr.formats.checkpoint import weights_fingerprint
from lwr.verify.verify import verify

pytestmark = pytest.mark.xdist_group("workflow")

CELLS = {("tiny-llama", "2"), ("tiny-llama", "4"), ("tiny-bert", "4")}


def cells(plan, rule):
    return {(w["base_model"], w["start_layer"], w["seed"]) for name, w in plan if name == rule}


def arms(plan, rule):
    """Return the arms of the jobs of a rule that runs once for all seeds of a cell."""
    return {(w["base_model"], w["start_layer"]) for name, w in plan if name == rule}


def test_layers_table_has_every_cell_and_exit(finished):
    table = pd.read_csv(finished.results / "tables/layers.csv", keep_default_na=False)
    exits = table[(table["layer"] > 0) & ~table["exit"].str.startswith("cascade")]
    assert {(m, str(s)) for m, s in zip(exits["base_model"], exits["start_layer"], strict=True)} == CELLS
    assert list(exits[exits["base_model"] == "tiny-llama"]["layer"]) == [2, 2, 3, 3, 4, 4, 4, 4]
    assert (table["layer"] == 0).sum() == 1


def test_run_prints_tables_and_paths_at_its_end(finished):
    printed = (finished.folder / "printed.txt").read_text(encoding="utf-8")
    assert (finished.results / "tables/layers.md").read_text(encoding="utf-8") in printed
    assert (finished.results / "tables/recommendation.md").read_text(encoding="utf-8") in printed
    assert "Open results/test/report.html: " in printed
    assert "results/test/tables/" in printed


def test_every_arm_has_cascade_and_cost_and_every_table_is_written(finished):
    results = finished.results
    costs = json.loads((results / "cost/json-docs.json").read_text(encoding="utf-8"))["arms"]
    assert len(costs) == len(CELLS)
    for model, start in CELLS:
        arm = results / f"cells/json-docs/{model}/start{start}/default"
        decided = json.loads((arm / "cascade/json-docs.json").read_text(encoding="utf-8"))
        assert (decided["base_model"], decided["start_layer"]) == (model, int(start))
        (exits,) = (a["exits"] for a in costs if (a["base_model"], str(a["start_layer"])) == (model, start))
        counted = {row["exit"] for row in exits}
        assert ("cascade" in counted) == (decided["chosen"] != "4")
    kinds = {"layers": ["csv", "md", "tex"], "recommendation": ["md"]}
    kinds |= {name: ["csv", "md"] for name in ("cost", "cascades", "calibration", "comparisons")}
    tables = {f"{name}.{kind}" for name, endings in kinds.items() for kind in endings}
    assert {file.name for file in (results / "tables").iterdir()} == tables
    assert "quality.svg" in {file.name for file in (results / "figures").iterdir()}
    assert "Recommendation" in (results / "report.html").read_text(encoding="utf-8")


def test_model_provenance(finished):
    model = finished.results / "cells/json-docs/tiny-llama/start2/default/seed1/model"
    came = json.loads((model / "provenance.json").read_text(encoding="utf-8"))
    assert came["base"] == {"model": "./checkpoints/tiny-llama"}
    assert came["base_fingerprint"] == weights_fingerprint(finished.folder / "checkpoints/tiny-llama")
    assert came["groups_sha256"] == sha256(finished.results / "collections/json-docs/groups.jsonl")
    assert (came["seed"], came["settings"]["steps"], came["processes"], came["gpu"]) == (1, 4, 1, None)
    assert came["packages"]["torch"].startswith(version("torch"))
    assert came["wall_seconds"] > 0
    assert came["peak_memory_mib"] > 100
    assert "energy_joules" in came


def test_verify_finds_no_fault_and_checks_every_file(finished):
    results = finished.results
    verdict = verify(results)
    assert verdict.faults == verdict.notes == []
    written = {path for path in results.rglob("*") if path.is_file()} - set((results / "logs").rglob("*"))
    assert verdict.files == len(written)


def test_second_run_does_nothing(finished):
    assert finished.plan() == []


def test_deleted_scores_rerun_their_cell_and_what_depends_on_it(project):
    shutil.rmtree(project.results / "cells/json-docs/tiny-bert/start4/default/seed1/scores")
    plan = project.plan()
    assert {rule for rule, _ in plan} == FROM_SCORE
    assert cells(plan, "score") == cells(plan, "evaluate") == {("tiny-bert", "4", "1")}
    assert cells(plan, "calibrate") == {("tiny-bert", "4", "1")}
    assert arms(plan, "cascade") == {("tiny-bert", "4")}
    assert [w for rule, w in plan if rule == "cost"] == [{"tested": "json-docs"}]


def test_deleted_report_reruns_only_report(project):
    (project.results / "report.html").unlink()
    assert project.planned_rules() == {"report"}


def test_added_seed_trains_only_its_own_cells(project):
    project.edit_config(lambda config: config["seeds"].append(2))
    plan = project.plan()
    assert {rule for rule, _ in plan} == {"train", *FROM_SCORE}
    for rule in ("train", "score"):
        assert cells(plan, rule) == {(model, start, "2") for model, start in CELLS}
    # one cascade is chosen for all seeds of an arm, and each seed is evaluated with it
    assert cells(plan, "evaluate") == {(*cell, seed) for cell in CELLS for seed in "12"}
    assert arms(plan, "cascade") == CELLS
    assert [w for rule, w in plan if rule == "cost"] == [{"tested": "json-docs"}]


@pytest.mark.nightly
def test_same_seed_gives_same_tables(finished, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(finished.folder, again, ignore=shutil.ignore_patterns("results", ".snakemake"))
    other = Project(again)
    other.snakemake()
    assert other.tables() == finished.tables()


def test_touched_source_file_reruns_nothing(project):
    (project.folder / "lwr/training/losses/layerwise.py").touch()
    (project.folder / "config/test.yaml").touch()
    assert project.plan() == []


@pytest.mark.parametrize(
    ("module", "steps"),
    [
        ("formats/trec", {"retrieve", "mine", "train", *FROM_SCORE}),
        ("training/losses/layerwise", {"train", *FROM_SCORE}),
        ("evaluation/cascade", FROM_CASCADE),
        ("reporting/tables", REPORTING_STEPS - {"compare"}),
        ("reporting/advise", {"advise", "report"}),
        ("scoring/teachers/bi_encoder", set()),  # this grid has no teachers
        ("cli/app", set()),
        ("verify/verify", set()),
    ],
)
def test_edited_module_reruns_the_steps_that_import_it_and_their_dependents(project, module, steps):
    with (project.folder / f"lwr/{module}.py").open("a", encoding="utf-8") as source:
        source.write("\nEDITED = True\n")
    assert project.planned_rules() == steps


def test_docstrings_comments_and_version_rerun_nothing(project):
    def edit(module: str, pattern: str, replacement: str) -> None:
        file = project.folder / f"lwr/{module}.py"
        text, count = re.subn(pattern, replacement, file.read_text(encoding="utf-8"), count=1, flags=re.M)
        assert count == 1
        file.write_text(text, encoding="utf-8")

    edit("training/losses/layerwise", r'^"""', '"""Reworded: ')  # a docstring of a module
    edit("training/losses/layerwise", r"^def layerwise_loss", "# a comment\ndef layerwise_loss")
    edit("config/training", r'description="', 'description="reworded: ')
    edit("evaluation/compare", r'^([A-Z_]+ = .*\n)"""', r'\1"""Reworded: ')  # a docstring of an attribute
    metadata = project.folder / "lwr-9.9.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: lwr\nVersion: 9.9\n", encoding="utf-8")
    assert project.plan() == []


def test_changed_base_model_retrains_only_its_cells(project):
    project.edit_config(lambda config: config["base_models"]["tiny-bert"].update(pooling="first"))
    plan = project.plan()
    assert cells(plan, "train") == cells(plan, "score") == {("tiny-bert", "4", "1")}
    assert {rule for rule, _ in plan} == {"base", "train", *FROM_SCORE}


def test_changed_setting_of_mining_mines_again(project):
    project.edit_config(lambda config: config["datasets"]["json-docs"]["mining"].update(seed=1))
    assert project.planned_rules() == {"mine", "train", *FROM_SCORE}


def test_added_start_layer_trains_only_its_own_cells(project):
    project.edit_config(lambda config: config["start_layers"].append(3))
    plan = project.plan()
    assert cells(plan, "train") == cells(plan, "score") == {("tiny-llama", "3", "1")}


def test_added_measure_reruns_from_evaluate(project):
    project.edit_config(lambda config: config["measures"].append("P@1"))
    assert project.planned_rules() == FROM_EVALUATE


def test_other_first_measure_trains_nothing_again_without_dev_evaluations(project):
    project.edit_config(lambda config: config["measures"].reverse())
    assert "train" not in project.planned_rules()


@pytest.mark.parametrize(
    ("section", "values", "steps"),
    [
        ("cost", {"queries": 1}, {"cost", *REPORTING_STEPS} - {"compare"}),
        ("margin", 0.5, REPORTING_STEPS - {"tables"}),
        ("fusion", {"penalty": 0.1}, FROM_FUSE),
        ("fusion", {"confidence": 0.8}, FROM_CASCADE),
        ("fusion", False, FROM_FUSE - {"fuse"}),
    ],
)
def test_changed_setting_of_a_late_step_reruns_from_that_step(project, section, values, steps):
    project.edit_config(lambda config: config.update({section: values}))
    assert project.planned_rules() == steps


def test_scores_in_int8_are_compared_with_float32(project):
    project.edit_config(lambda config: config.update(score={"precision": "int8"}))
    plan = project.plan()
    assert {rule for rule, _ in plan} == {"precision", *FROM_SCORE}
    assert arms(plan, "precision") == CELLS


@pytest.mark.slow
def test_without_fusion_no_table_has_fused_rows(cell):
    assert b"fused" in cell.tables()["layers.csv"]
    cell.edit_config(lambda config: config.update(fusion=False))
    cell.snakemake()
    assert [name for name, table in cell.tables().items() if b"fused" in table] == []
    verdict = verify(cell.results)
    assert verdict.faults == []
    assert [note.partition(": ")[0] for note in verdict.notes] == [
        str(cell.results / "cells/json-docs/tiny-llama/start2/default/fusion/json-docs.json")
    ]


@pytest.mark.slow
def test_shards_give_same_tables(finished, project):
    project.edit_config(lambda config: config.update(score={"shards": 2}))
    shards, splits = 2, 2  # dev and test
    assert sum(rule == "score" for rule, _ in project.plan()) == shards * splits * len(CELLS)
    project.snakemake()
    assert project.tables() == finished.tables()


@pytest.mark.parametrize("name", ["report.zip", "report.html"])
def test_snakemake_report_is_written(project, name):
    project.snakemake("--report", name)
    assert (project.folder / name).stat().st_size > 10_000


def test_failed_run_lists_failed_jobs_and_their_logs(project):
    shutil.rmtree(project.results / "cells/json-docs/tiny-llama")
    (project.folder / "checkpoints/tiny-llama/model.safetensors").write_bytes(b"cut short")
    run = project.snakemake("--keep-going", check=False)
    assert run.returncode != 0
    listed = (run.stdout + run.stderr).partition("What failed, and its log:\n")[2].splitlines()[:2]
    logs = [
        f"  train  results/test/logs/train/json-docs/tiny-llama/start{k}/default/seed1.log" for k in (2, 4)
    ]
    assert sorted(listed) == logs
