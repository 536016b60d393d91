"""How the figures look: sizes, colours, type, and one panel or several."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import pandas as pd

# Okabe and Ito's colours, which colour-blind readers tell apart, without the yellow that white paper swallows
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
SHAPES = (
    "circle",
    "square",
    "triangle-up",
    "cross",
    "triangle-down",
)  # 5 x 7 colours: 35 arms look different
WIDTH, HEIGHT = 320, 210


def per_arm(looks: Sequence[str], arms: Sequence[str]) -> alt.Scale:
    """The same arm looks the same in every figure that is given the same arms."""
    return alt.Scale(domain=arms, range=[looks[i % len(looks)] for i in range(len(arms))])


def faded(pick: alt.Parameter, full: float = 1) -> alt.When:
    """`full` opacity for the arm picked, or for all where none is."""
    return alt.when(pick).then(alt.value(full)).otherwise(alt.value(0.08))


def close(**settings: float | bool | list[float]) -> alt.Scale:
    """As wide as the data, and a margin."""
    return alt.Scale(**{"zero": False, "nice": False, "padding": 10, **settings})


def told(text: Sequence[str], numbers: dict[str, str]) -> list[alt.Tooltip]:
    """A tooltip of words under their own names and numbers under the titles given."""
    quantities = [alt.Tooltip(f"{name}:Q", title=title, format=".4~r") for name, title in numbers.items()]
    return [*(alt.Tooltip(f"{name}:N") for name in text), *quantities]


def nothing(why: str) -> alt.Chart:
    """The words instead of a figure."""
    chart = alt.Chart(pd.DataFrame({"why": [why]})).mark_text(fontSize=13, color="#555").encode(text="why:N")
    return _styled(chart.properties(width=WIDTH, height=80))


def finished(
    chart: alt.Chart | alt.LayerChart,
    table: pd.DataFrame,
    note: Sequence[str],
    by: str = "dataset",
    height: int | alt.Step = HEIGHT,
    y: str = "independent",
) -> alt.Chart | alt.LayerChart | alt.FacetChart:
    """With its data, the note on top, and a panel for each value of `by` where there are several."""
    panels = list(dict.fromkeys(table[by]))
    chart.data = table.round(5)
    # two panels of arms in one column of a paper, if their labels fit
    narrow = max(WIDTH // 2 - 20, 6 * max(map(len, panels), default=0))
    several = len(panels) > 1
    chart = chart.properties(width=narrow if several and by == "panel" else WIDTH, height=height)
    if several:
        chart = chart.facet(alt.Facet(f"{by}:N", title=None, sort=panels), columns=2).resolve_scale(y=y)
    return _styled(chart.properties(title=list(note)) if note else chart)


def _styled(
    chart: alt.Chart | alt.LayerChart | alt.FacetChart,
) -> alt.Chart | alt.LayerChart | alt.FacetChart:
    text = {"labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": "normal"}
    return chart.configure(
        font="Arial, Helvetica, Liberation Sans, sans-serif",
        background="white",
        axis=alt.AxisConfig(
            **text, gridColor="#EBEBEB", domainColor="#888", tickColor="#888", titlePadding=6
        ),
        legend=alt.LegendConfig(**text, orient="bottom", titleOrient="left", symbolStrokeWidth=1.8),
        header=alt.HeaderConfig(labelFontSize=11, labelAnchor="start", labelPadding=4, labelLimit=0),
        title=alt.TitleConfig(fontSize=11, fontWeight="normal", anchor="start", color="#555", offset=8),
        view=alt.ViewConfig(stroke=None),
    )
