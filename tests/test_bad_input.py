"""Tests of bad input: one message with place and fix, no traceback, nothing written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from bad_input_cases import CASES
from bad_input_world import build, run

NAMES = [f"{case.what} ({case.command[0]})" for case in CASES]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("bad_input") / "world")


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_bad_input_is_one_message_and_changes_nothing(case, world, tmp_path, monkeypatch):
    folder = shutil.copytree(world, tmp_path / "folder")
    monkeypatch.chdir(folder)
    outcome = run(case)
    if not case.key_words:
        assert outcome.code == 0, outcome.stderr
        assert outcome.changed
        return
    assert outcome.code == case.code, outcome.stderr
    assert [word for word in case.key_words if word not in outcome.stderr] == [], outcome.stderr
    assert "Traceback" not in outcome.stderr
    prefixed = [line for line in outcome.stderr.splitlines() if line.startswith("lwr: ")]
    # `check` prints lines without a prefix, and Typer reports wrong options (status 2) itself
    assert len(prefixed) == (1 if case.code == 1 and case.command[0] != "check" else 0)
    assert outcome.changed == []


def test_cases_are_distinct():
    assert len(set(NAMES)) == len(CASES)
