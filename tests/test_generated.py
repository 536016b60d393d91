"""Tests that generated files are what `make generated` writes."""

from __future__ import annotations

import pytest
from generated_files import GENERATED, ROOT

SLOW = {"docs/reliability.md"}  # runs every case of bad input


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in GENERATED]
)
def test_generated_files_are_fresh(name):
    assert (ROOT / name).read_text(encoding="utf-8") == GENERATED[name](), "outdated: run `make generated`"
