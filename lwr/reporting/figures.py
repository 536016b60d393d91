"""The figures: quality, cost and training by exit; each a function from tables to one Altair chart.

Sized for one column of a two-column paper (3.3 inches); where there are several data sets, for both.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import altair as alt
import pandas as pd

from lwr.common.atomic import atomic
from lwr.common.exits import ARM_COLUMNS
from lwr.evaluation.measures import read_measures
from lwr.reporting.figure_data import by_exit, by_panel, layer_of, read_table, training_losses, won_and_lost
from lwr.reporting.figure_style import (
    COLOURS,
    HEIGHT,
    SHAPES,
    WIDTH,
    close,
    faded,
    finished,
    nothing,
    per_arm,
    told,
)

FIGURES = ("quality", "gain", "flops", "latency", "wins", "training")
OUTCOMES = {"lost": "#D55E00", "tied": "#DDDDDD", "won": "#0072B2"}
PANELS = 12


def figures(
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
    per_query = read_measures(measures)
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
    base, pick = _base(arms, primary, {"low": "95% from", "high": "95% to", "seeds": "seeds"})
    x = alt.X("x:Q", title="layer", scale=close()).axis(format="d", grid=False, **ticks)
    base = base.encode(x=x, y=_of_quality(primary))
    lines, points = _exits(base, arms, pick)
    intervals = base.transform_filter("datum.kind != 'first stage'").mark_rule(strokeWidth=1.2)
    chart = alt.layer(
        *_first_stage(primary, "right"),
        lines,
        intervals.encode(y="low:Q", y2="high:Q"),
        _cascades(base, pick),
        points,  # over a diamond in the same place
    )
    return finished(chart, table, _note(table, "Bars: 95% intervals."))


def gain(layers: pd.DataFrame, primary: str) -> alt.Chart:
    """By relative depth, how much of the deepest exit's gain over the first stage is there, and of its score."""
    table = by_exit(layers, primary).query("kind == 'exit'")
    if table["share of gain"].isna().all():
        return nothing("no arm gains anything over the first stage")
    arms = _arms(table)
    depth = 100 * table["layer"] / table.groupby(["dataset", "arm"])["layer"].transform("max")
    shares = {of: 100 * table[f"share of {of}"] for of in ("gain", "score")}
    table = pd.concat([table.assign(depth=depth, share=share, of=of) for of, share in shares.items()])
    table = table.dropna(subset="share")
    lowest, highest = min(table["share"].min(), 0), max(table["share"].max(), 100)
    base, pick = _base(arms, primary, {"depth": "depth (%)", "share": "share (%)"}, ["of"])
    y_scale = close(domain=[max(lowest, -100), highest])
    base = base.encode(
        x=alt.X("depth:Q", title="layer, share of the deepest exit's (%)", scale=close()).axis(tickCount=5),
        y=alt.Y("share:Q", title="share of the deepest exit's gain (%)", scale=y_scale),
    )
    score = base.transform_filter("datum.of == 'score'").encode(opacity=faded(pick, 0.6))
    chart = alt.layer(
        *_exits(base.transform_filter("datum.of == 'gain'"), arms, pick),
        score.mark_line(strokeWidth=1.3, strokeDash=[2, 3], clip=True),
    )
    cut = "Cut off below −100%." if lowest < -100 else ""
    return finished(
        chart, table, _note(table, "Solid: gain over the first stage. Dotted: share of the score.", cut)
    )


def flops(layers: pd.DataFrame, cascades: pd.DataFrame, primary: str) -> alt.Chart:
    """`primary` on test by FLOPs: the exits of each arm, and the cascades that nothing beats on dev."""
    table = by_exit(layers, primary)
    cascades = cascades[cascades["front"].astype(bool)]
    if not cascades.empty:
        whole = table.groupby([*ARM_COLUMNS, "arm"], as_index=False)["gflops per pair"].max()
        front = cascades.merge(whole, on=ARM_COLUMNS)
        front = front.assign(kind="front", flops=front["test flops"], quality=front["test"])
        front["gflops per pair"] *= front["flops"]
        table = pd.concat([table, front.assign(what="schedule " + front["schedule"])])
    table["share"] = 100 * table["flops"]
    if table["share"].isna().all():
        return nothing("no FLOPs were counted")
    arms = _arms(table)
    x = alt.X("share:Q", title="FLOPs per list, share of the deepest exit (%)", scale=close(zero=True))
    base, pick = _base(arms, primary, {"share": "FLOPs (%)", "gflops per pair": "GFLOPs per pair"})
    base = base.encode(x=x.axis(tickCount=5), y=_of_quality(primary))
    front = base.transform_filter("datum.kind == 'front'")
    dashes, dots = front.mark_line(strokeDash=[3, 2], strokeWidth=1.1), front.mark_point(size=12, filled=True)
    lines, points = _exits(base, arms, pick)
    chart = alt.layer(
        *_first_stage(primary, "left"),
        lines,
        *([] if cascades.empty else [dashes, dots]),
        _cascades(base, pick),
        points,  # over a diamond in the same place
    )
    dashed = "Dashed: cascades on the dev front." if table["what"].str.contains(":").any() else ""
    return finished(chart, table, _note(table, "Solid: single exits.", dashed))


def latency(layers: pd.DataFrame, cost: pd.DataFrame, primary: str) -> alt.Chart:
    """`primary` on test by measured time per list, from the median to the 95th percentile."""
    if cost["p50 ms"].isna().all():
        return nothing("no latencies were measured")
    measured = ["p50 ms", "p95 ms", "candidates", "device"]
    table = by_exit(layers, primary).merge(
        cost[[*ARM_COLUMNS, "exit", *measured]], on=[*ARM_COLUMNS, "exit"], how="left"
    )
    arms = _arms(table)
    table = table[table["p50 ms"].notna() | (table["kind"] == "first stage")]
    sizes, devices = table["candidates"].dropna().unique(), table["device"].dropna().unique()
    of_size = f" of {sizes[0]:.0f} passages" if len(sizes) == 1 else ""
    x = alt.X("p50 ms:Q", title=f"median time per list{of_size} (ms)", scale=close(zero=True))
    numbers = {"p50 ms": "median (ms)", "p95 ms": "95th percentile (ms)"}
    base, pick = _base(arms, primary, numbers, ["device"])
    base = base.encode(x=x.axis(tickCount=6), y=_of_quality(primary))
    timed = base.transform_filter("datum.kind != 'first stage'").encode(x2="p95 ms:Q")
    device = f"{devices[0]}." if len(devices) == 1 else ""
    note = _note(table, "Bars: to the 95th percentile.", device)
    lines, points = _exits(base, arms, pick)
    chart = alt.layer(
        *_first_stage(primary, "left"), lines, timed.mark_rule(strokeWidth=1.2), _cascades(base, pick), points
    )
    return finished(chart, table, note)


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
        tooltip=told(["panel", "exit", "outcome"], numbers),
    )
    if table["base_model"].nunique() > 1:  # of several depths
        return finished(chart, table, note, by="panel", height=alt.Step(15), y="independent")
    return finished(chart, table, note, by="panel", height=15 * len(names), y="shared")


def curves(losses: pd.DataFrame) -> alt.Chart:
    """Contrastive loss per exit by step (`training_losses`), a panel per arm."""
    if losses.empty:
        return nothing("no training was logged")
    table, note = by_panel(losses, PANELS)
    legend = alt.Legend(columns=8, symbolType="stroke", symbolLimit=0)
    viridis = alt.Scale(scheme=alt.SchemeParams("viridis", extent=[0, 0.92]))  # its end is pale on paper
    chart = alt.Chart().mark_line(strokeWidth=1.4)
    chart = chart.encode(
        x=alt.X("step:Q", title="step", axis=alt.Axis(tickCount=3, format=",d", grid=False)),
        y=alt.Y("loss:Q", title="contrastive loss (nats)", scale=close()).axis(tickCount=5),
        color=alt.Color("layer:O", title="exit at layer", legend=legend, scale=viridis),
        tooltip=told(["panel"], {"layer": "layer", "step": "step", "loss": "loss (nats)"}),
    )
    height = HEIGHT if table["panel"].nunique() == 1 else HEIGHT // 2
    return finished(chart, table, note, by="panel", height=height, y="shared")


def _arms(table: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(table["arm"].dropna()))


def _base(
    arms: Sequence[str], primary: str, numbers: dict[str, str], text: Sequence[str] = ()
) -> tuple[alt.Chart, alt.Parameter]:
    """What all marks share: the arm's colour, a tooltip, and that a click in the legend fades the other arms."""
    pick = alt.selection_point(fields=["arm"], bind="legend")
    columns = max(1, WIDTH // (30 + 6 * max(map(len, arms), default=1)))
    color = alt.Color("arm:N", title=None, scale=per_arm(COLOURS, arms))
    return alt.Chart().encode(
        color=color.legend(columns=columns, labelLimit=0, symbolLimit=0),
        tooltip=told(["arm", "what", *text], {"quality": primary, **numbers}),
        opacity=faded(pick),
    ), pick


def _exits(base: alt.Chart, arms: Sequence[str], pick: alt.Parameter) -> tuple[alt.Chart, alt.Chart]:
    """Lines and points. Of all coloured layers the lines must come first: the legend heeds clicks for that alone."""
    exits = base.transform_filter("datum.kind == 'exit'")
    lines = exits.mark_line(strokeWidth=1.8, clip=True).encode(order="layer:Q").add_params(pick)
    shape = alt.Shape("arm:N", title=None, scale=per_arm(SHAPES, arms))
    return lines, exits.mark_point(filled=True, size=36, clip=True).encode(shape=shape)


def _first_stage(primary: str, side: str) -> list[alt.Chart]:
    rows = alt.Chart().transform_filter("datum.kind == 'first stage'").encode(y=_of_quality(primary))
    x, dx = (alt.value("width"), -3) if side == "right" else (alt.value(0), 3)
    words = rows.mark_text(text="first stage", align=side, baseline="top", dx=dx, dy=4, color="#555")
    return [rows.mark_rule(strokeDash=[4, 3], color="#777"), words.encode(x=x)]


def _cascades(base: alt.Chart, pick: alt.Parameter) -> alt.Chart:
    # all rows, most of them unseen: where a data set has no cascade, Vega would warn of marks without data
    unseen = alt.when("datum.kind != 'cascade'").then(alt.value(0))
    opacity = unseen.when(pick).then(alt.value(1)).otherwise(alt.value(0.08))
    points = base.transform_filter("datum.kind != 'first stage'").encode(opacity=opacity)
    return points.mark_point(shape="diamond", size=130, fill="white", strokeWidth=2)


def _of_quality(primary: str) -> alt.Y:
    # the padding leaves room for words below the lowest rule
    return alt.Y("quality:Q", title=f"{primary} (test)", scale=close(padding=18)).axis(tickCount=6)


def _note(table: pd.DataFrame, *sentences: str) -> list[str]:
    cascade = "Diamond: cascade chosen on dev." if (table["kind"] == "cascade").any() else ""
    return textwrap.wrap(" ".join(filter(None, [cascade, *sentences])), 62)
