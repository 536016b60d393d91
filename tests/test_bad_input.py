"""Bad input: one message that says what to mend, no traceback, nothing written; and the table that shows them all."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from bad_input_cases import CASES, TABLE
from bad_input_table import BEGIN, END, PAGE
from bad_input_world import build, row, run

NAMES = [f"{case.what} ({case.command[0]})" for case in CASES]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("bad_input") / "world")


@pytest.fixture(scope="module")
def table() -> list[str]:
    return PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].splitlines()


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_bad_input_is_one_message_and_changes_nothing(case, world, table, tmp_path, monkeypatch):
    here = shutil.copytree(world, tmp_path / "here")
    monkeypatch.chdir(here)
    outcome = run(case)
    if case.says:
        assert outcome.code == case.code, outcome.said
        assert all(text in outcome.said for text in case.says), outcome.said
        assert "Traceback" not in outcome.said
        one = case.code == 1 and case.command[0] != "check"  # whose lines editors find
        assert sum(line.startswith("lwr: ") for line in outcome.said.splitlines()) == one
        assert outcome.changed == []
    else:
        assert outcome.code == 0, outcome.said
        assert outcome.changed
    assert row(case, outcome) in table, "the table is older: python tests/bad_input_table.py"


def test_the_table_holds_every_case_once(table):
    rows = [line for line in table if re.match(r"\| (?!what is wrong)[^:]", line)]
    assert len(rows) == len(set(rows)) == len(CASES) == len(set(NAMES))
    assert [line[4:] for line in table if line.startswith("### ")] == list(TABLE)
