"""A 6-layer arm teaches a 4-layer arm: the order of the jobs, a kill in the teach step, and what teaches again."""

from __future__ import annotations

import re
import shutil
import time
from itertools import pairwise

import pytest
import tiny
from project import ROOT, Project, copy_project
from sessions import kill_session, start
from transformers import AutoConfig, AutoModel

from lwr.formats.trec import read_run
from lwr.verify.verify import verify

pytestmark = pytest.mark.xdist_group("workflow")

STUDENT = "results/test/cells/json-docs/four/start2/taught/seed1/model"
TEACHER_RUNS = "collections/json-docs/teachers"


def let_six_layers_teach_four(config: dict) -> None:
    """Reduce config/test.yaml to two arms; groups are mined by a bi-encoder's scores, and scored in two shards."""
    six = {"base_model": "six", "start_layer": 2, "variant": "alone", "seed": 1}
    config["base_models"] = {
        "six": {"model": "./checkpoints/six", "variants": ["alone"]},
        "four": {"model": "./checkpoints/tiny-bert", "variants": ["taught"]},
    }
    config["start_layers"] = [2]
    config["variants"] = {"alone": {}, "taught": {"distillation": {"external": "six"}}}
    config["teachers"] = {
        "six": {"kind": "cell", "cell": six, "layer": 5, "fused": True},
        "cosine": {"kind": "bi_encoder", "model": "./checkpoints/tiny-bert"},
    }
    config["datasets"]["json-docs"]["mining"] |= {"teacher": "cosine", "margin": -1.0}
    config["score"] = {"shards": 2}


def born_again_project(folder) -> Project:
    project = copy_project(folder)
    shape = tiny.SHAPE | {"num_hidden_layers": 6}
    AutoModel.from_config(AutoConfig.for_model("bert", **shape)).save_pretrained(folder / "checkpoints/six")
    tiny.tokenizer(encoder=True).save_pretrained(folder / "checkpoints/six")
    project.edit_config(let_six_layers_teach_four)
    return project


@pytest.fixture
def unfinished(tmp_path) -> Project:
    return born_again_project(tmp_path)


@pytest.fixture(scope="module")
def killed_and_finished(tmp_path_factory) -> Project:
    """Train the student; Snakemake is killed while the second shard of the teaching arm's scores is computed."""
    project = born_again_project(tmp_path_factory.mktemp("taught"))
    shards, logs = project.results / TEACHER_RUNS / "six.shards", project.results / "logs/teach/json-docs"
    process = start(project, "--cores", "1", STUDENT)
    deadline = time.monotonic() + 600
    while not (list(shards.glob("[0-9].trec")) and len(list(logs.glob("six.*.log"))) == 2):
        assert process.poll() is None, "Snakemake ended before the second shard began"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    kill_session(process)
    (project.folder / "finished_shard.txt").write_text(
        "".join(path.stem for path in shards.glob("[0-9].trec"))
    )
    project.snakemake("--unlock")
    project.snakemake("--rerun-incomplete", STUDENT)
    return project


@pytest.fixture
def taught(killed_and_finished, tmp_path) -> Project:
    shutil.copytree(killed_and_finished.folder, tmp_path / "project", copy_function=shutil.copy2)
    return Project(tmp_path / "project")


def planned(project: Project) -> set[str]:
    """Return the steps that a student would need, those of a teacher or a base model with its name."""
    return {
        " ".join([rule, *(jobs[key] for key in ("teacher", "base_model") if key in jobs)])
        for rule, jobs in project.plan(STUDENT)
    }


def test_arm_that_teaches_is_trained_and_fused_before_its_student(unfinished):
    graph = unfinished.snakemake("--dag", "dot", STUDENT).stdout
    jobs = dict(re.findall(r'(\d+)\[label = "([^"]+)"', graph))
    edges = {(jobs[a], jobs[b]) for a, b in re.findall(r"(\d+) -> (\d+)", graph)}
    rules = {(a.split("\\n")[0], b.split("\\n")[0]) for a, b in edges}
    chain = ["train", "teach", "gather_teacher", "train"]
    assert set(pairwise(chain)) | {("fuse", "teach"), ("gather_teacher", "mine")} <= rules
    assert sum(job.startswith("teach\\n") for job in jobs.values()) == 4  # two teachers in two shards


def test_cycle_of_arms_is_refused_before_any_job(unfinished):
    unfinished.edit_config(
        lambda config: config["variants"].update(alone={"distillation": {"external": "six"}})
    )
    run = unfinished.snakemake("--dry-run", check=False)
    assert run.returncode != 0
    assert "teachers.six.cell: six/start2/alone/seed1, which learns from six" in run.stdout + run.stderr
    assert not unfinished.results.exists()


@pytest.mark.slow
def test_kill_in_the_teach_step_keeps_the_finished_shard(killed_and_finished):
    finished = (killed_and_finished.folder / "finished_shard.txt").read_text()
    logs = killed_and_finished.results / "logs/teach/json-docs"
    other = {"1": "2", "2": "1"}[finished]
    assert (logs / f"six.{finished}.log").stat().st_mtime < (logs / f"six.{other}.log").stat().st_mtime
    folder = killed_and_finished.results / "collections/json-docs"
    first_stage, taught = read_run(folder / "runs/train.trec"), read_run(folder / "teachers/six.trec")
    assert list(taught) == list(first_stage)
    assert all(
        {doc for doc, _ in docs} <= {doc for doc, _ in taught[query]} for query, docs in first_stage.items()
    )
    assert sorted(path.name for path in (folder / "teachers").iterdir()) == ["cosine.trec", "six.trec"]
    assert killed_and_finished.plan(STUDENT) == []


@pytest.mark.slow
def test_verify_accepts_what_was_taught_and_finds_another_teacher(taught):
    def of_teachers() -> list[str]:
        return [fault for fault in verify(taught.results).faults if "teacher" in fault]

    assert of_teachers() == []
    run = taught.results / TEACHER_RUNS / "six.trec"
    run.write_text(run.read_text().replace(" six\n", " other\n"))
    assert len(of_teachers()) == 1


@pytest.mark.slow
def test_only_a_changed_teacher_teaches_again(taught):
    six = {"teach six", "gather_teacher six", "train four"}

    def change(section: str, name: str, **values) -> set[str]:
        before = (taught.folder / taught.config).read_text()
        taught.edit_config(lambda config: config[section][name].update(values))
        steps = planned(taught)
        (taught.folder / taught.config).write_text(before)
        return steps

    assert change("variants", "taught", lr=1e-3) == {"train four"}
    assert change("teachers", "six", layer=4) == six
    assert change("teachers", "six", fused=False) == six
    assert change("teachers", "six", first_stage_weight=0.5) == six
    assert change("variants", "alone", lr=1e-3) >= {"train six", *six}
    assert {"teach cosine"}.isdisjoint(change("variants", "alone", lr=1e-3))
    again = change("teachers", "cosine", scale=10)
    assert {"teach cosine", "gather_teacher cosine", "mine", "train six", *six} <= again
    assert "retrieve" not in again

    with (taught.folder / "lwr/scoring/teachers/yes_no.py").open("a", encoding="utf-8") as source:
        source.write("\nEDITED = True\n")
    assert {"teach cosine", "mine", *six} <= planned(taught)
    shutil.copy2(ROOT / "lwr/scoring/teachers/yes_no.py", taught.folder / "lwr/scoring/teachers/yes_no.py")

    weights = taught.folder / "checkpoints/tiny-bert/model.safetensors"
    weights.touch()
    assert planned(taught) == set()
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert {"teach cosine", "mine"} <= planned(taught)
