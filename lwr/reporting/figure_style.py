"""Set the look of figures: sizes, colours, type, and one panel or several."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import pandas as pd

from lwr.reporting.palette import read_colours

COLOURS = read_colours()
ARM_COLOURS = tuple(COLOURS[f"arm-{number}"] for number in range(1, 8))
ARM_SHAPES = ("circle", "square", "triangle-up", "cross", "triangle-down")
"""5 shapes and 7 colours: coprime numbers, so that 35 arms differ in one or the other."""
WIDTH, HEIGHT = 320, 210


def arm_scale(values: Sequence[str], arms: Sequence[str]) -> alt.Scale:
    """Assign colours or shapes to arms: the same ones in every figure that is given the same `arms`."""
    return alt.Scale(domain=arms, range=[values[i % len(values)] for i in range(len(arms))])


def fade_unpicked(pick: alt.Parameter, full: float = 1) -> alt.When:
    """Set the opacity to `full` for the picked arm, or for all arms while none is picked, and fade the others."""
    return alt.when(pick).then(alt.value(full)).otherwise(alt.value(0.08))


def tight_scale(**settings: float | bool | list[float]) -> alt.Scale:
    """Make a scale that covers the data and a margin, and does not extend to zero or to round numbers."""
    return alt.Scale(**{"zero": False, "nice": False, "padding": 10, **settings})


def tooltip(text: Sequence[str], numbers: dict[str, str]) -> list[alt.Tooltip]:
    """Make a tooltip.

    Args:
        text: Columns of text, shown under their own names.
        numbers: Columns of numbers -> the titles that they are shown under.
    """
    quantities = [alt.Tooltip(f"{name}:Q", title=title, format=".4~r") for name, title in numbers.items()]
    return [*(alt.Tooltip(f"{name}:N") for name in text), *quantities]


def empty_figure(reason: str) -> alt.Chart:
    """Make a figure that says why there is nothing to draw."""
    chart = alt.Chart(pd.DataFrame({"why": [reason]}))
    chart = chart.mark_text(fontSize=13, color=COLOURS["figure-text"]).encode(text="why:N")
    return _apply_theme(chart.properties(width=WIDTH, height=80))


def finish(
    chart: alt.Chart | alt.LayerChart,
    table: pd.DataFrame,
    note: Sequence[str],
    by: str = "dataset",
    height: int | alt.Step = HEIGHT,
    y: str = "independent",
) -> alt.Chart | alt.LayerChart | alt.FacetChart:
    """Give a chart its data, its note, its size and the common theme.

    Args:
        chart: Marks and encodings without data.
        table: The data.
        note: Lines of text above the figure.
        by: The column with a panel per value; a single value gets no panel.
        height: The height of one panel, in pixels.
        y: Whether the panels have a `shared` or an `independent` y axis.
    """
    panels = list(dict.fromkeys(table[by]))
    chart.data = table.round(5)
    # Two panels of arms fit into one column of a paper if their labels do.
    narrow = max(WIDTH // 2 - 20, 6 * max(map(len, panels), default=0))
    several = len(panels) > 1
    chart = chart.properties(width=narrow if several and by == "panel" else WIDTH, height=height)
    if several:
        chart = chart.facet(alt.Facet(f"{by}:N", title=None, sort=panels), columns=2).resolve_scale(y=y)
    return _apply_theme(chart.properties(title=list(note)) if note else chart)


def _apply_theme(
    chart: alt.Chart | alt.LayerChart | alt.FacetChart,
) -> alt.Chart | alt.LayerChart | alt.FacetChart:
    text = {"labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": "normal"}
    grid, axis, title = (COLOURS[f"figure-{name}"] for name in ("grid", "axis", "text"))
    return chart.configure(
        font="Arial, Helvetica, Liberation Sans, sans-serif",
        background="white",
        axis=alt.AxisConfig(**text, gridColor=grid, domainColor=axis, tickColor=axis, titlePadding=6),
        legend=alt.LegendConfig(**text, orient="bottom", titleOrient="left", symbolStrokeWidth=1.8),
        header=alt.HeaderConfig(labelFontSize=11, labelAnchor="start", labelPadding=4, labelLimit=0),
        title=alt.TitleConfig(fontSize=11, fontWeight="normal", anchor="start", color=title, offset=8),
        view=alt.ViewConfig(stroke=None),
    )
