"""The figures: quality, cost and training by exit; each a function from tables to one Altair chart.

Sized for one column of a two-column paper (3.3 inches); where there are several data sets, for both.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import altair as alt
import pandas as pd

from lwr.compare import ARM
from lwr.figure_data import by_exit, by_panel, layer_of, read_table, training_losses, won_and_lost
from lwr.files import atomic

FIGURES = ("quality", "gain", "flops", "latency", "wins", "training")
# Okabe and Ito's colours, which colour-blind readers tell apart, without the yellow that white paper swallows
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
SHAPES = (
    "circle",
    "square",
    "triangle-up",
    "cross",
    "triangle-down",
)  # times 7 colours: 35 arms look different
OUTCOMES = {"lost": "#D55E00", "tied": "#DDDDDD", "won": "#0072B2"}
WIDTH, HEIGHT = 320, 210
PANELS = 12


def write_figures(
    tables: Path, measures: Sequence[Path], training: Sequence[Path], primary: str, out: Path
) -> None:
    """Each of FIGURES in the folder `out`, as .html (opens offline), .svg, .png and .json (Vega-Lite).

    tables: the folder of layers.csv, cascades.csv and cost.csv.
    measures: Parquet files of values per query.
    training: `…/{dataset}/{base_model}/start{k}/{variant}/seed{n}/model/training.jsonl`; these names are read.
    primary: the measure on the axes of quality.

    A figure that has nothing to show says so. Raises BadInput where a training.jsonl is no JSON lines.
    """
    layers = read_table(tables / "layers.csv")
    per_query = pd.concat([pd.read_parquet(file) for file in measures])
    charts = (
        quality(layers, primary),
        gain(layers, primary),
        flops(layers, read_table(tables / "cascades.csv"), primary),
        latency(layers, read_table(tables / "cost.csv"), primary),
        wins(won_and_lost(per_query, primary)),
        curves(training_losses(training)),
    )
    for name, chart in zip(FIGURES, charts, strict=True):
        for suffix in ("html", "svg", "png", "json"):
            with atomic(out / f"{name}.{suffix}") as unfinished:
                chart.save(unfinished, inline=suffix == "html", scale_factor=3)


def quality(layers: pd.DataFrame, primary: str) -> alt.Chart:
    """`primary` by layer, a line per arm; the first stage is a rule, a cascade stands at its deepest layer."""
    table = by_exit(layers, primary)
    arms = _arms(table)
    # side by side, so that the intervals of several arms can be told apart
    beside = {arm: (i - (len(arms) - 1) / 2) * 0.3 / max(len(arms), 3) for i, arm in enumerate(arms)}
    table["x"] = table["layer"] + table["arm"].map(beside)
    ticks = sorted(set(table.loc[table["kind"] == "exit", "layer"].tolist()))
    ticks = {"values": ticks} if len(ticks) <= 16 else {"tickMinStep": 1}
    y = _of_quality(table, primary)
    base, pick = _base(arms, primary, {"low": "95% from", "high": "95% to", "seeds": "seeds"})
    base = base.encode(
        x=alt.X("x:Q", title="layer", scale=_close()).axis(format="d", grid=False, **ticks), y=y
    )
    first_stage = alt.Chart().transform_filter("datum.kind == 'first stage'").encode(y=y)
    intervals = base.transform_filter("datum.kind != 'first stage'").mark_rule(strokeWidth=1.2)
    chart = alt.layer(
        first_stage.mark_rule(strokeDash=[4, 3], color="#777"),
        first_stage.mark_text(align="right", baseline="top", dx=-3, dy=4, color="#555").encode(
            x=alt.value("width"), text=alt.value("first stage")
        ),
        intervals.encode(y="low:Q", y2="high:Q"),
        *_exits(base, arms, pick),
        *_cascades(base, table),
    )
    return _finished(chart, table, _note(table, "Bars: 95% intervals."))


def gain(layers: pd.DataFrame, primary: str) -> alt.Chart:
    """By relative depth, how much of the deepest exit's gain over the first stage is there, and of its score."""
    table = by_exit(layers, primary).query("kind == 'exit'")
    depth = 100 * table["layer"] / table.groupby(["dataset", "arm"])["layer"].transform("max")
    shares = {of: 100 * table[f"share of {of}"] for of in ("gain", "score")}
    table = pd.concat([table.assign(depth=depth, share=share, of=of) for of, share in shares.items()])
    table = table.dropna(subset="share")
    if table.empty:
        return _nothing("no arm gains anything over the first stage")
    arms, lowest, highest = _arms(table), min(table["share"].min(), 0), max(table["share"].max(), 100)
    base, pick = _base(arms, primary, {"depth": "depth (%)", "share": "share (%)"}, ["of"])
    y_scale = _close(domain=[max(lowest, -100), highest])
    base = base.encode(
        x=alt.X("depth:Q", title="layer, share of the deepest exit's (%)", scale=_close()).axis(tickCount=5),
        y=alt.Y("share:Q", title="share of the deepest exit's gain (%)", scale=y_scale),
    )
    score = base.transform_filter("datum.of == 'score'").encode(opacity=_faded(pick, 0.6))
    chart = alt.layer(
        *_exits(base.transform_filter("datum.of == 'gain'"), arms, pick),
        score.mark_line(strokeWidth=1.3, strokeDash=[2, 3], clip=True),
    )
    cut = "Cut off below −100%." if lowest < -100 else ""
    return _finished(
        chart, table, _note(table, "Solid: gain over the first stage. Dotted: share of the score.", cut)
    )


def flops(layers: pd.DataFrame, cascades: pd.DataFrame, primary: str) -> alt.Chart:
    """`primary` on test by FLOPs: the exits of each arm, and the cascades that nothing beats on dev."""
    table = by_exit(layers, primary).query("kind != 'first stage'")
    if not cascades.empty:
        whole = table.groupby([*ARM, "arm"], as_index=False)["gflops per pair"].max()
        front = cascades.merge(whole, on=ARM)
        front = front.assign(kind="front", flops=front["test flops"], quality=front["test"])
        front["gflops per pair"] *= front["flops"]
        table = pd.concat([table, front.assign(what="schedule " + front["schedule"])])
    table = table.assign(share=100 * table["flops"]).dropna(subset="share")
    if table.empty:
        return _nothing("no FLOPs were counted")
    arms = _arms(table)
    x = alt.X("share:Q", title="FLOPs per list, share of the deepest exit (%)", scale=_close(zero=True))
    base, pick = _base(arms, primary, {"share": "FLOPs (%)", "gflops per pair": "GFLOPs per pair"})
    base = base.encode(x=x.axis(tickCount=5), y=_of_quality(table, primary))
    front = base.transform_filter("datum.kind == 'front'")
    line, points = front.mark_line(strokeDash=[3, 2], strokeWidth=1.1), front.mark_point(size=12, filled=True)
    chart = alt.layer(
        *([] if cascades.empty else [line, points]),
        *_exits(base, arms, pick),
        *_cascades(base, table),
    )
    dashed = "Dashed: cascades on the dev front." if table["what"].str.contains(":").any() else ""
    return _finished(chart, table, _note(table, "Solid: single exits.", dashed))


def latency(layers: pd.DataFrame, cost: pd.DataFrame, primary: str) -> alt.Chart:
    """`primary` on test by measured time per list, from the median to the 95th percentile."""
    if cost.empty:
        return _nothing("no latencies were measured")
    measured = ["p50 ms", "p95 ms", "candidates", "device"]
    table = by_exit(layers, primary).merge(cost[[*ARM, "exit", *measured]], on=[*ARM, "exit"])
    arms, sizes, devices = _arms(table), table["candidates"].unique(), table["device"].unique()
    of_size = f" of {sizes[0]:.0f} passages" if len(sizes) == 1 else ""
    x = alt.X("p50 ms:Q", title=f"median time per list{of_size} (ms)", scale=_close(zero=True))
    numbers = {"p50 ms": "median (ms)", "p95 ms": "95th percentile (ms)"}
    base, pick = _base(arms, primary, numbers, ["device"])
    base = base.encode(x=x.axis(tickCount=6), y=_of_quality(table, primary))
    slow = base.mark_rule(strokeWidth=1.2).encode(x2="p95 ms:Q")
    device = f"{devices[0]}." if len(devices) == 1 else ""
    note = _note(table, "Bars: to the 95th percentile.", device)
    return _finished(alt.layer(slow, *_exits(base, arms, pick), *_cascades(base, table)), table, note)


def wins(counts: pd.DataFrame) -> alt.Chart:
    """Queries lost, tied and won against the deepest exit (`won_and_lost`), a panel per arm, a bar per exit."""
    table, note = by_panel(counts, PANELS)
    table["order"] = table["outcome"].map(list(OUTCOMES).index)
    table["share"] *= 100
    names = {
        name: name.removeprefix("layer_").replace("_", " ")
        for name in sorted(set(table["exit"]), key=layer_of)
    }
    table["exit"] = table["exit"].map(names)
    outcomes = alt.Scale(domain=list(OUTCOMES), range=list(OUTCOMES.values()))
    x = alt.X("share:Q", title="test queries (%)", scale=alt.Scale(domain=[0, 100]))
    y = alt.Y("exit:N", title="layer", sort=list(names.values()))
    numbers = {"queries": "queries", "share": "queries (%)", "difference": "mean difference"}
    chart = alt.Chart().mark_bar(height=alt.RelativeBandSize(0.78))
    chart = chart.encode(
        x=x.axis(values=[0, 25, 50, 75, 100]),
        y=y.axis(grid=False, ticks=False, labelPadding=6),
        color=alt.Color("outcome:N", title="against the deepest exit", scale=outcomes),
        order="order:Q",
        tooltip=_told(["panel", "exit", "outcome"], numbers),
    )
    if table["base_model"].nunique() > 1:  # of several depths
        return _finished(chart, table, note, by="panel", height=alt.Step(15), y="independent")
    return _finished(chart, table, note, by="panel", height=15 * len(names), y="shared")


def curves(losses: pd.DataFrame) -> alt.Chart:
    """Contrastive loss per exit by step (`training_losses`), a panel per arm."""
    if losses.empty:
        return _nothing("no training was logged")
    table, note = by_panel(losses, PANELS)
    legend = alt.Legend(columns=8, symbolType="stroke", symbolLimit=0)
    viridis = alt.Scale(scheme=alt.SchemeParams("viridis", extent=[0, 0.92]))  # its end is pale on paper
    chart = alt.Chart().mark_line(strokeWidth=1.4)
    chart = chart.encode(
        x=alt.X("step:Q", title="step", axis=alt.Axis(tickCount=3, format=",d", grid=False)),
        y=alt.Y("loss:Q", title="contrastive loss (nats)", scale=_close()).axis(tickCount=5),
        color=alt.Color("layer:O", title="exit at layer", legend=legend, scale=viridis),
        tooltip=_told(["panel"], {"layer": "layer", "step": "step", "loss": "loss (nats)"}),
    )
    height = HEIGHT if table["panel"].nunique() == 1 else HEIGHT // 2
    return _finished(chart, table, note, by="panel", height=height, y="shared")


def _arms(table: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(table["arm"].dropna()))


def _base(
    arms: Sequence[str], primary: str, numbers: dict[str, str], text: Sequence[str] = ()
) -> tuple[alt.Chart, alt.Parameter]:
    """What all marks share: the arm's colour, a tooltip, and that a click in the legend fades the other arms."""
    pick = alt.selection_point(fields=["arm"], bind="legend")
    columns = max(1, WIDTH // (30 + 6 * max(map(len, arms), default=1)))
    color = alt.Color("arm:N", title=None, scale=_per_arm(COLOURS, arms))
    return alt.Chart().encode(
        color=color.legend(columns=columns, labelLimit=0, symbolLimit=0),
        tooltip=_told(["arm", "what", *text], {"quality": primary, **numbers}),
        opacity=_faded(pick),
    ), pick


def _per_arm(looks: Sequence[str], arms: Sequence[str]) -> alt.Scale:
    return alt.Scale(domain=arms, range=[looks[i % len(looks)] for i in range(len(arms))])


def _exits(base: alt.Chart, arms: Sequence[str], pick: alt.Parameter) -> list[alt.Chart]:
    exits = base.transform_filter("datum.kind == 'exit'")
    points = exits.mark_point(filled=True, size=36, clip=True)
    return [
        exits.mark_line(strokeWidth=1.8, clip=True).encode(order="layer:Q"),
        points.encode(shape=alt.Shape("arm:N", title=None, scale=_per_arm(SHAPES, arms))).add_params(pick),
    ]


def _cascades(base: alt.Chart, table: pd.DataFrame) -> list[alt.Chart]:
    if not (table["kind"] == "cascade").any():  # Vega warns of marks without data
        return []
    cascades = base.transform_filter("datum.kind == 'cascade'")
    return [cascades.mark_point(shape="diamond", size=130, fill="white", strokeWidth=2)]


def _faded(pick: alt.Parameter, full: float = 1) -> alt.When:
    return alt.when(pick).then(alt.value(full)).otherwise(alt.value(0.08))


def _of_quality(table: pd.DataFrame, primary: str) -> alt.Y:
    lowest, highest = table["quality"].min(), table["quality"].max()
    alone = {"domain": [lowest - 0.05, lowest + 0.05]} if lowest == highest else {}
    # the padding leaves room for words below the lowest rule
    return alt.Y("quality:Q", title=f"{primary} (test)", scale=_close(padding=18, **alone)).axis(tickCount=6)


def _close(**settings: float | bool | list[float]) -> alt.Scale:
    return alt.Scale(**{"zero": False, "nice": False, "padding": 10, **settings})


def _told(text: Sequence[str], numbers: dict[str, str]) -> list[alt.Tooltip]:
    quantities = [alt.Tooltip(f"{name}:Q", title=title, format=".4~r") for name, title in numbers.items()]
    return [*(alt.Tooltip(f"{name}:N") for name in text), *quantities]


def _note(table: pd.DataFrame, *sentences: str) -> list[str]:
    cascade = "Diamond: cascade chosen on dev." if (table["kind"] == "cascade").any() else ""
    return textwrap.wrap(" ".join(filter(None, [cascade, *sentences])), 62)


def _nothing(why: str) -> alt.Chart:
    chart = alt.Chart(pd.DataFrame({"why": [why]})).mark_text(fontSize=13, color="#555").encode(text="why:N")
    return _styled(chart.properties(width=WIDTH, height=80))


def _finished(
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
