"""Tests of docs/complaints.md: the tests that it names exist, and each complaint has a thread and a test."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs/complaints.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| complaint")
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_complaint_has_a_thread_and_tests_that_exist(row):
    _, thread, _, tests = row
    assert re.search(r"\]\(https://github\.com/[\w.-]+/[\w.-]+/(issues|pull)/\d+\)", thread)
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", tests)
    assert named
    for path, test in named:
        assert f"\ndef {test}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path}::{test}"


def test_the_page_has_rows():
    assert len(ROWS) >= 10
