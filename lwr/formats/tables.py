"""Write tables of results as CSV (numbers) and Markdown (text)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from lwr.common.atomic import atomic


def write_table(path: Path, numbers: pd.DataFrame, text: pd.DataFrame, note: str = "") -> None:
    """Write `numbers` to `path`.csv, and `note` followed by `text` to `path`.md."""
    write_text(path.with_suffix(".csv"), csv_text(numbers))
    write_text(path.with_suffix(".md"), note + markdown_table(text))


def csv_text(numbers: pd.DataFrame) -> str:
    """Return a table as CSV with six decimals, without its index."""
    return numbers.to_csv(index=False, float_format="%.6f")


def markdown_table(text: pd.DataFrame) -> str:
    """Return a table of strings as Markdown."""
    return text.to_markdown(index=False, disable_numparse=True) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    with atomic(path) as draft:
        draft.write_text(text, encoding="utf-8")
