"""The stylesheet that all pages share, and its colours for what is drawn outside a page."""

from __future__ import annotations

import re
from pathlib import Path

STYLESHEET = Path(__file__).with_name("style.css")


def read_stylesheet() -> str:
    """Return the CSS that every page inlines."""
    return STYLESHEET.read_text(encoding="utf-8")


def read_colours() -> dict[str, str]:
    """Return the colours of the light scheme: the name of the CSS variable, such as `accent` -> its hex code."""
    light, _, _ = read_stylesheet().partition("@media")
    return dict(re.findall(r"--([\w-]+): (#\w+);", light))
