"""Render docs/reliability.md: what users see of each case of bad input, as tables."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path

from bad_input_cases import TABLE
from bad_input_world import build, row, run

PAGE = Path(__file__).parents[2] / "docs/reliability.md"
BEGIN, END = "<!-- begin: written by `make generated` -->\n", "<!-- end: written by `make generated` -->\n"


def render_page() -> str:
    """Run every case in a temporary folder, and return the page with new tables."""
    page = PAGE.read_text(encoding="utf-8")
    return page.partition(BEGIN)[0] + BEGIN + _render_tables() + "\n" + END + page.partition(END)[2]


def _render_tables() -> str:
    parts = []
    with tempfile.TemporaryDirectory() as scratch:
        world = build(Path(scratch) / "world")
        here = Path(scratch) / "here"
        for section, cases in TABLE.items():
            parts.append(f"\n### {section}\n\n| what is wrong | command | what you see |\n|:--|:--|:--|\n")
            for case in cases:
                shutil.copytree(world, here)
                with contextlib.chdir(here):
                    parts.append(row(case, run(case)) + "\n")
                shutil.rmtree(here)
    return "".join(parts)
