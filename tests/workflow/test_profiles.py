"""Profiles, as far as a dry run can check them without their cluster."""

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
    for rule in re.findall(r"^ *(?:use rule \w+ as|rule) (\w+)", file.read_text(encoding="utf-8"), re.M)
}


@pytest.fixture(scope="module")
def fresh_project(tmp_path_factory) -> Project:
    """Copy the project without results. Tests only read it."""
    return copy_project(tmp_path_factory.mktemp("profiles"))


def missing_plugins(profile) -> list[str]:
    """Return the plugins that a dry run of a profile needs and that are not installed."""
    packages = [f"snakemake-executor-plugin-{profile['executor']}"] if "executor" in profile else []
    packages += ["snakemake-storage-plugin-fs"] if "default-storage-provider" in profile else []
    return [package for package in packages if find_spec(package.replace("-", "_")) is None]


def planned_resources(project, *arguments) -> dict[str, dict[str, str]]:
    """Return the resources of one job of each rule: {rule: {resource: value}}."""
    out = project.snakemake("--dry-run", *arguments).stdout
    jobs = re.findall(r"^rule (\w+):\n(?:    .*\n)*?    resources: (.*)$", out, re.M)
    return {rule: dict(pair.split("=", 1) for pair in resources.split(", ")) for rule, resources in jobs}


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_names_existing_rules(name):
    profile = PROFILES[name]
    assert set(profile.get("set-resources", {})) | set(profile.get("set-threads", {})) <= RULES


@pytest.mark.parametrize("name", sorted(PROFILES.keys() - {"default"}))
def test_every_profile_keeps_going_and_reruns_incomplete_files(name):
    assert PROFILES[name]["keep-going"]
    assert PROFILES[name]["rerun-incomplete"]


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_dry_runs(name, fresh_project, tmp_path, monkeypatch):
    if missing := missing_plugins(PROFILES[name]):
        pytest.skip(f"needs pip install {' '.join(missing)}")
    monkeypatch.setenv("SNAKEMAKE_AWS_BATCH_JOB_QUEUE", "a-queue")  # profiles leave these to their users
    monkeypatch.setenv("SNAKEMAKE_AWS_BATCH_JOB_ROLE", "arn:aws:iam::1:role/a-role")
    storage = ["--default-storage-provider", "fs", "--default-storage-prefix", str(tmp_path / "bucket")]
    options = storage if "default-storage-provider" in PROFILES[name] else []
    fresh_project.snakemake("--dry-run", "--profile", f"workflow/profiles/{name}", *options)


def test_rich_displays_a_run(fresh_project):
    pytest.importorskip("snakemake_logger_plugin_rich", reason="is in the extra dev")
    assert "This was a dry-run" in fresh_project.snakemake("--dry-run", "--logger", "rich").stderr


@pytest.mark.skipif(bool(missing_plugins(PROFILES["slurm"])), reason="needs pip install lwr[slurm]")
def test_slurm_profile_requests_the_resources_of_the_rules(fresh_project):
    rules = planned_resources(fresh_project)
    on_slurm = planned_resources(fresh_project, "--profile", "workflow/profiles/slurm")
    for rule in rules.keys() - {"all"}:
        for resource in ("mem_mb", "runtime"):
            assert on_slurm[rule][resource] == rules[rule][resource], (rule, resource)
        partition = "gpu" if "gpu" in rules[rule] else "cpu"
        assert on_slurm[rule]["slurm_partition"] == partition, rule
    assert {"gpu"} <= rules["train"].keys() & rules["score"].keys()
