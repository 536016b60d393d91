"""Each profile, as far as it can be checked without its cluster: it names what exists, and Snakemake takes it."""

from __future__ import annotations

import re
from importlib.util import find_spec

import pytest
import yaml
from project import ROOT, Project, copy_project

PROFILES = {
    file.parent.name: yaml.safe_load(file.read_text(encoding="utf-8"))
    for file in sorted((ROOT / "workflow/profiles").glob("*/profile.yaml"))
}
RULES = {
    rule
    for file in (ROOT / "workflow/rules").glob("*.smk")
    for rule in re.findall(r"^ *rule (\w+):", file.read_text(encoding="utf-8"), re.M)
}


@pytest.fixture(scope="module")
def new_house(tmp_path_factory) -> Project:
    """A project in which nothing has run; look, don't touch."""
    folder = tmp_path_factory.mktemp("profiles") / "project"
    folder.mkdir()
    return copy_project(folder)


def missing_plugins(profile) -> list[str]:
    """Packages that a dry run of it needs: the executor's, and where jobs share no disk, a folder as their bucket."""
    packages = [f"snakemake-executor-plugin-{profile['executor']}"] if "executor" in profile else []
    packages += ["snakemake-storage-plugin-fs"] if "default-storage-provider" in profile else []
    return [package for package in packages if find_spec(package.replace("-", "_")) is None]


def asked_for(project, *arguments) -> dict[str, dict[str, str]]:
    """rule -> resources of one of its jobs."""
    out = project.snakemake("--dry-run", *arguments).stdout
    jobs = re.findall(r"^rule (\w+):\n(?:    .*\n)*?    resources: (.*)$", out, re.M)
    return {rule: dict(pair.split("=", 1) for pair in resources.split(", ")) for rule, resources in jobs}


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_speaks_of_rules_that_exist(name):
    profile = PROFILES[name]
    assert set(profile.get("set-resources", {})) | set(profile.get("set-threads", {})) <= RULES


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_outlives_a_lost_cell_and_a_crash(name):
    assert PROFILES[name]["keep-going"]
    assert PROFILES[name]["rerun-incomplete"]


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_dry_runs(name, new_house, tmp_path, monkeypatch):
    if missing := missing_plugins(PROFILES[name]):
        pytest.skip(f"needs pip install {' '.join(missing)}")
    monkeypatch.setenv("SNAKEMAKE_AWS_BATCH_JOB_QUEUE", "a-queue")  # what the profiles leave to their users
    monkeypatch.setenv("SNAKEMAKE_AWS_BATCH_JOB_ROLE", "arn:aws:iam::1:role/a-role")
    bucket = ["--default-storage-provider", "fs", "--default-storage-prefix", str(tmp_path / "bucket")]
    elsewhere = bucket if "default-storage-provider" in PROFILES[name] else []
    new_house.snakemake("--dry-run", "--profile", f"workflow/profiles/{name}", *elsewhere)


@pytest.mark.skipif(bool(missing_plugins(PROFILES["slurm"])), reason="needs pip install lwr[slurm]")
def test_slurm_is_asked_for_what_the_rules_ask_for(new_house):
    rules = asked_for(new_house)
    on_slurm = asked_for(new_house, "--profile", "workflow/profiles/slurm")
    for rule in rules.keys() - {"all"}:
        for resource in ("mem_mb", "runtime"):
            assert on_slurm[rule][resource] == rules[rule][resource], (rule, resource)
        partition = "gpu" if "gpu" in rules[rule] else "cpu"
        assert on_slurm[rule]["slurm_partition"] == partition, rule
    assert {"gpu"} <= rules["train"].keys() & rules["score"].keys()
