"""Provenance holds the given facts and what the result depends on."""

import subprocess
from types import SimpleNamespace

from lwr.common import provenance
from lwr.common.provenance import PACKAGES, ResourceMeter, git_commit, make_provenance


def test_provenance_holds_facts_versions_and_resources():
    record = make_provenance(ResourceMeter(), seed=3)
    assert record["seed"] == 3
    assert record["packages"].keys() == set(PACKAGES)
    assert record["machine"].keys() == {"host", "system", "processor"}
    assert record["wall_seconds"] >= 0
    assert record["peak_memory_mib"] > 0


def test_energy_is_none_if_the_counter_wraps_around(monkeypatch):
    readings = iter([100.0, 103.5, 2.0])
    monkeypatch.setattr(provenance, "read_cpu_joules", lambda: next(readings))
    meter = ResourceMeter()
    assert meter.read()["energy_joules"] == 3.5
    assert meter.read()["energy_joules"] is None


def test_git_commit_is_marked_if_there_are_edits(monkeypatch):
    answers = {"rev-parse": "abc\n", "status": " M file\n"}

    def answer(command, **_):
        return SimpleNamespace(stdout=answers[command[3]])

    monkeypatch.setattr(subprocess, "run", answer)
    assert git_commit() == "abc+"
    answers["status"] = ""
    assert git_commit() == "abc"


def test_git_commit_is_none_without_git(monkeypatch):
    def fail(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", fail)
    assert git_commit() is None
