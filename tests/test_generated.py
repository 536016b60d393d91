"""Tests that generated files are what `make generated` writes."""

from __future__ import annotations

import importlib.util

import pytest
from generated_files import GENERATED, ROOT

SLOW = {"docs/reliability.md"}  # runs every case of bad input


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in GENERATED]
)
def test_generated_files_are_fresh(name):
    assert (ROOT / name).read_text(encoding="utf-8") == GENERATED[name](), "outdated: run `make generated`"


def reachable(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return (a, b) for each b that a path of edges leads to from a."""
    found = set(edges)
    while more := {(a, d) for a, b in found for c, d in edges if b == c} - found:
        found |= more
    return found


@pytest.mark.parametrize("name", ["packages", pytest.param("rules", marks=pytest.mark.slow)])
def test_drawings_show_the_edges_that_there_are(name):
    spec = importlib.util.spec_from_file_location("drawings", ROOT / "docs/drawings.py")
    drawings = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(drawings)
    drawn = drawings.drawn_edges((ROOT / f"docs/{name}.svg").read_text(encoding="utf-8"))
    edges = drawings.package_edges() if name == "packages" else drawings.rule_edges()
    assert reachable(drawn) == reachable(edges), "run `make drawings`"
