"""Write every generated file again, as `make generated` does: `python tests/helpers/generated_files.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import architectures
from bad_input_table import render_page

from lwr.config.reference.render import render_readme, render_schema

ROOT = Path(__file__).parents[2]
GENERATED: dict[str, Callable[[], str]] = {
    "config/schema.json": render_schema,
    "config/README.md": render_readme,
    "docs/reliability.md": render_page,
    "docs/how-to/own-base-model.md": architectures.render_page,
}
"""File -> the function that returns its text."""

if __name__ == "__main__":
    for name, render in GENERATED.items():
        (ROOT / name).write_text(render(), encoding="utf-8")
