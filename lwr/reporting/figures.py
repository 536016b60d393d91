"""The figures of quality, cost and training by exit; each a function from tables to one Altair chart.

A figure has the width of one column of a two-column paper (3.3 inches), or of both columns where it has a panel per
data set or per arm.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import altair as alt
import pandas as pd

from lwr.common.atomic import atomic
from lwr.common.exits import ARM_COLUMNS, is_fused
from lwr.common.results_tree import FIGURE_FORMATS, FIGURES
from lwr.evaluation.measures import read_measures
from lwr.reporting.figure_data import (
    complete_front,
    count_wins,
    exit_rows,
    label_exits,
    read_reliability,
    read_table,
    read_training_losses,
    select_panels,
)
from lwr.reporting.figure_style import (
    ARM_COLOURS,
    ARM_SHAPES,
    COLOURS,
    HEIGHT,
    WIDTH,
    arm_scale,
    empty_figure,
    fade_unpicked,
    finish,
    tight_scale,
    tooltip,
)
from lwr.reporting.fused import add_costs, complete_cascades

OUTCOMES = ("lost", "tied", "won")
MOST_PANELS = 12


def figures(
    tables: Path,
    measures: Sequence[Path],
    models: Sequence[Path],
    calibrations: Sequence[Path],
    primary: str,
    out: Path,
) -> None:
    """Write every figure as .html (opens offline), .svg, .png and .json (Vega-Lite). A figure without data says so.

    Args:
        tables: Folder of layers.csv, cascades.csv and cost.csv.
        measures: Parquet files of values per query, as `lwr evaluate` writes them.
        models: Folders that `lwr train` wrote.
        calibrations: Files that `lwr calibrate` wrote.
        primary: The measure of quality.
        out: The folder that is written to.

    Raises:
        BadInput: A model's training.jsonl is not JSON lines, or its cell is not known.
    """
    charts = draw_figures(tables, measures, models, calibrations, primary)
    for name in FIGURES:
        for suffix in FIGURE_FORMATS:
            with atomic(out / f"{name}.{suffix}") as draft:
                charts[name].save(draft, inline=suffix == "html", scale_factor=3)


def draw_figures(
    tables: Path,
    measures: Sequence[Path],
    models: Sequence[Path],
    calibrations: Sequence[Path],
    primary: str,
) -> dict[str, alt.Chart]:
    """Return the chart of every figure by its name, from the arguments of `figures`."""
    layers = read_table(tables / "layers.csv")
    return {
        "quality": draw_quality(layers, primary),
        "gain": draw_gain(layers, primary),
        "flops": draw_flops(layers, read_table(tables / "cascades.csv"), primary),
        "latency": draw_latency(layers, read_table(tables / "cost.csv"), primary),
        "wins": draw_wins(count_wins(read_measures(measures), primary)),
        "reliability": draw_reliability(read_reliability(calibrations)),
        "training": draw_training(read_training_losses(models)),
    }


def draw_quality(layers: pd.DataFrame, primary: str) -> alt.Chart:
    """Draw `primary` by layer: a line per arm, the first stage as a rule, a cascade at its deepest layer.

    Exits that read compressed passages are in the figures of FLOPs and times.
    """
    table = exit_rows(layers, primary).query("kind != 'compressed'")
    arms = _arms(table)
    # Shift the arms sideways so that the intervals of one do not cover those of another.
    shift = {arm: (i - (len(arms) - 1) / 2) * 0.3 / max(len(arms), 3) for i, arm in enumerate(arms)}
    beside = (table["kind"] == "fused") * 0.15 / max(len(arms), 3)
    table["x"] = table["layer"] + table["arm"].map(shift) + beside
    ticks = sorted(set(table.loc[table["kind"] == "exit", "layer"].tolist()))
    ticks = {"values": ticks} if len(ticks) <= 16 else {"tickMinStep": 1}
    base, pick = _base(arms, primary, {"low": "95% from", "high": "95% to", "seeds": "seeds"})
    x = alt.X("x:Q", title="layer", scale=tight_scale()).axis(format="d", grid=False, **ticks)
    base = base.encode(x=x, y=_quality_axis(primary))
    lines, points = _exits(base, arms, pick)
    intervals = base.transform_filter("datum.kind != 'first stage'").mark_rule(strokeWidth=1.2)
    chart = alt.layer(
        *_first_stage(primary, "right"),
        lines,
        intervals.encode(y="low:Q", y2="high:Q"),
        *_fused_exits(base, table),
        _cascades(base, pick),
        points,  # above a diamond at the same position
    )
    return finish(chart, table, _note(table, "Bars: 95% intervals."))


def draw_gain(layers: pd.DataFrame, primary: str) -> alt.Chart:
    """Draw the share of the deepest exit's gain over the first stage, and of its score, by relative depth."""
    table = exit_rows(layers, primary).query("kind in ('exit', 'fused')")
    if table["share of gain"].isna().all():
        return empty_figure("no arm gains anything over the first stage")
    arms = _arms(table)
    depth = 100 * table["layer"] / table.groupby(["dataset", "arm"])["layer"].transform("max")
    shares = {of: 100 * table[f"share of {of}"] for of in ("gain", "score")}
    table = pd.concat([table.assign(depth=depth, share=share, of=of) for of, share in shares.items()])
    table = table[(table["of"] == "gain") | (table["kind"] == "exit")]
    table = table.dropna(subset="share")
    lowest, highest = min(table["share"].min(), 0), max(table["share"].max(), 100)
    base, pick = _base(arms, primary, {"depth": "depth (%)", "share": "share (%)"}, ["of"])
    y_scale = tight_scale(domain=[max(lowest, -100), highest])
    base = base.encode(
        x=alt.X("depth:Q", title="layer, share of the deepest exit's (%)", scale=tight_scale()).axis(
            tickCount=5
        ),
        y=alt.Y("share:Q", title="share of the deepest exit's gain (%)", scale=y_scale),
    )
    score = base.transform_filter("datum.of == 'score'").encode(opacity=fade_unpicked(pick, 0.6))
    gain = base.transform_filter("datum.of == 'gain'")
    chart = alt.layer(
        *_exits(gain, arms, pick),
        *_fused_exits(gain, table),
        score.mark_line(strokeWidth=1.3, strokeDash=[2, 3], clip=True),
    )
    cut = "Cut off below −100%." if lowest < -100 else ""
    return finish(
        chart, table, _note(table, "Solid: gain over the first stage. Dotted: share of the score.", cut)
    )


def draw_flops(layers: pd.DataFrame, cascades: pd.DataFrame, primary: str) -> alt.Chart:
    """Draw `primary` on test by FLOPs: the exits of each arm, and the schedules that are Pareto-optimal on dev.

    Where schedules compress passages, the front of those that do not has a line of its own.
    """
    cascades = complete_cascades(cascades)
    table = exit_rows(layers, primary)
    fronts = {"front": cascades[cascades["front"].astype(bool)], "complete front": complete_front(cascades)}
    drawn = {kind: rows for kind, rows in fronts.items() if not rows.empty}
    table = pd.concat([table, *(_pareto_front(table, rows, kind) for kind, rows in drawn.items())])
    table["share"] = 100 * table["flops"]
    if table["share"].isna().all():
        return empty_figure("no FLOPs were counted")
    arms = _arms(table)
    x = alt.X("share:Q", title="FLOPs per list, share of the deepest exit (%)", scale=tight_scale(zero=True))
    base, pick = _base(arms, primary, {"share": "FLOPs (%)", "gflops per pair": "GFLOPs per pair"})
    base = base.encode(x=x.axis(tickCount=5), y=_quality_axis(primary))
    schedules = []
    for kind in drawn:
        front = base.transform_filter(f"datum.kind == '{kind}'")
        dashes = [3, 2] if kind == "front" else [1, 2]
        schedules.append(front.mark_line(strokeDash=dashes, strokeWidth=1.1))
        schedules.append(front.mark_point(size=12, filled=True))
    lines, points = _exits(base, arms, pick)
    chart = alt.layer(
        *_first_stage(primary, "left"),
        lines,
        *schedules,
        *_fused_exits(base, table),
        *_compressed_exits(base, table),
        _cascades(base, pick),
        points,  # above a diamond at the same position
    )
    dashed = "Dashed: cascades on the dev front." if table["what"].str.contains("[:/]").any() else ""
    dotted = "Dotted: those of complete passages." if "complete front" in drawn else ""
    return finish(chart, table, _note(table, "Solid: single exits.", dashed, dotted))


def _pareto_front(table: pd.DataFrame, cascades: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Return the rows of cascades in the columns of `exit_rows`, with their quality and FLOPs on test."""
    deepest = table.groupby([*ARM_COLUMNS, "arm"], as_index=False)["gflops per pair"].max()
    front = cascades.merge(deepest, on=ARM_COLUMNS)
    front = front.assign(kind=kind, flops=front["test flops"], quality=front["test"])
    front["gflops per pair"] *= front["flops"]
    fused = front["fused"].map({True: ", fused", False: ""})
    front = front.assign(what="schedule " + front["schedule"] + fused)
    return front[[*ARM_COLUMNS, "arm", "kind", "what", "quality", "flops", "gflops per pair"]]


def draw_latency(layers: pd.DataFrame, cost: pd.DataFrame, primary: str) -> alt.Chart:
    """Draw `primary` on test by measured time per list, with a bar from the median to the 95th percentile."""
    if cost["p50 ms"].isna().all():
        return empty_figure("no latencies were measured")
    measured = ["p50 ms", "p95 ms", "candidates", "device"]
    times = add_costs(layers[[*ARM_COLUMNS, "exit", "schedule"]], cost, measured)[measured]
    table = exit_rows(layers, primary).join(times)
    arms = _arms(table)
    table = table[table["p50 ms"].notna() | (table["kind"] == "first stage")]
    sizes, devices = table["candidates"].dropna().unique(), table["device"].dropna().unique()
    of_size = f" of {sizes[0]:.0f} passages" if len(sizes) == 1 else ""
    x = alt.X("p50 ms:Q", title=f"median time per list{of_size} (ms)", scale=tight_scale(zero=True))
    numbers = {"p50 ms": "median (ms)", "p95 ms": "95th percentile (ms)"}
    base, pick = _base(arms, primary, numbers, ["device"])
    base = base.encode(x=x.axis(tickCount=6), y=_quality_axis(primary))
    timed = base.transform_filter("datum.kind != 'first stage'").encode(x2="p95 ms:Q")
    device = f"{devices[0]}." if len(devices) == 1 else ""
    note = _note(table, "Bars: to the 95th percentile.", device)
    lines, points = _exits(base, arms, pick)
    chart = alt.layer(
        *_first_stage(primary, "left"),
        lines,
        timed.mark_rule(strokeWidth=1.2),
        *_fused_exits(base, table),
        *_compressed_exits(base, table),
        _cascades(base, pick),
        points,
    )
    return finish(chart, table, note)


def draw_wins(counts: pd.DataFrame) -> alt.Chart:
    """Draw the queries lost, tied and won against the deepest exit (`count_wins`): a panel per arm, a bar per exit."""
    table, note = select_panels(counts, MOST_PANELS)
    table["order"] = table["outcome"].map(OUTCOMES.index)
    table["share"] *= 100
    labels = label_exits(set(table["exit"]))
    table["exit"] = table["exit"].map(labels)
    outcomes = alt.Scale(domain=list(OUTCOMES), range=[COLOURS[name] for name in OUTCOMES])
    x = alt.X("share:Q", title="test queries (%)", scale=alt.Scale(domain=[0, 100]))
    y = alt.Y("exit:N", title="layer", sort=list(labels.values()))
    numbers = {"queries": "queries", "share": "queries (%)", "difference": "mean difference"}
    chart = alt.Chart().mark_bar(height=alt.RelativeBandSize(0.78))
    chart = chart.encode(
        x=x.axis(values=[0, 25, 50, 75, 100]),
        y=y.axis(grid=False, ticks=False, labelPadding=6),
        color=alt.Color("outcome:N", title="against the deepest exit", scale=outcomes),
        order="order:Q",
        tooltip=tooltip(["panel", "exit", "outcome"], numbers),
    )
    if table["base_model"].nunique() > 1:  # base models differ in their layers
        return finish(chart, table, note, by="panel", height=alt.Step(15), y="independent")
    return finish(chart, table, note, by="panel", height=15 * len(labels), y="shared")


def draw_reliability(bins: pd.DataFrame) -> alt.Chart:
    """Draw the share of relevant candidates by predicted probability (`read_reliability`), a panel per arm."""
    table, note = select_panels(bins, MOST_PANELS)
    methods = [name for name in dict.fromkeys(table["method"]) if name != "perfect"]
    colours = arm_scale(ARM_COLOURS, methods)
    scale = alt.Scale(type="sqrt", domain=[0, 1])  # most candidates are not relevant
    axis = {"values": [0, 0.05, 0.2, 0.5, 1], "format": "~g", "grid": False}
    base = alt.Chart().encode(
        x=alt.X("predicted:Q", title="probability of relevance", scale=scale).axis(**axis),
        y=alt.Y("share:Q", title="share that is relevant (test)", scale=scale).axis(**axis),
        detail="seed:N",
    )
    numbers = {"predicted": "probability", "share": "relevant", "candidates": "candidates"}
    of_method = base.transform_filter("datum.method != 'perfect'").encode(
        color=alt.Color("method:N", title="probabilities", scale=colours),
        tooltip=tooltip(["panel", "what", "method"], {**numbers, "seed": "seed"}),
    )
    chart = alt.layer(
        base.transform_filter("datum.method == 'perfect'").mark_line(
            strokeDash=[4, 3], color=COLOURS["figure-rule"]
        ),
        of_method.mark_line(strokeWidth=1.4),
        of_method.mark_point(size=22, filled=True),
    )
    height = HEIGHT if table["panel"].nunique() == 1 else HEIGHT // 2
    exit = "Deepest exit, fused." if table["exit"].map(is_fused).any() else "Deepest exit."
    note = [*note, f"{exit} A point: a tenth of the candidates."]
    return finish(chart, table, note, by="panel", height=height, y="shared")


def draw_training(losses: pd.DataFrame) -> alt.Chart:
    """Draw the loss of each exit by step (`read_training_losses`), a panel per arm."""
    if losses.empty:
        return empty_figure("no training was logged")
    table, note = select_panels(losses, MOST_PANELS)
    names = list(dict.fromkeys(table["name"]))
    title = "contrastive loss (nats)" if names == ["contrastive"] else f"loss ({', '.join(names)})"
    legend = alt.Legend(columns=8, symbolType="stroke", symbolLimit=0)
    viridis = alt.Scale(scheme=alt.SchemeParams("viridis", extent=[0, 0.92]))  # its end is too pale on white
    chart = alt.Chart().mark_line(strokeWidth=1.4)
    chart = chart.encode(
        x=alt.X("step:Q", title="step", axis=alt.Axis(tickCount=3, format=",d", grid=False)),
        y=alt.Y("loss:Q", title=title, scale=tight_scale()).axis(tickCount=5),
        color=alt.Color("layer:O", title="exit at layer", legend=legend, scale=viridis),
        tooltip=tooltip(["panel", "name"], {"layer": "layer", "step": "step", "loss": "loss"}),
    )
    height = HEIGHT if table["panel"].nunique() == 1 else HEIGHT // 2
    return finish(
        chart, table, note, by="panel", height=height, y="shared" if len(names) == 1 else "independent"
    )


# --- Marks that figures share ---


def _arms(table: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(table["arm"].dropna()))


def _base(
    arms: Sequence[str], primary: str, numbers: dict[str, str], text: Sequence[str] = ()
) -> tuple[alt.Chart, alt.Parameter]:
    """Return a chart with the arms' colours, a tooltip and a legend; and the selection of a click in the legend."""
    pick = alt.selection_point(fields=["arm"], bind="legend")
    columns = max(1, WIDTH // (30 + 6 * max(map(len, arms), default=1)))
    color = alt.Color("arm:N", title=None, scale=arm_scale(ARM_COLOURS, arms))
    chart = alt.Chart().encode(
        color=color.legend(columns=columns, labelLimit=0, symbolLimit=0),
        tooltip=tooltip(["arm", "what", *text], {"quality": primary, **numbers}),
        opacity=fade_unpicked(pick),
    )
    return chart, pick


def _exits(base: alt.Chart, arms: Sequence[str], pick: alt.Parameter) -> tuple[alt.Chart, alt.Chart]:
    """Return the lines and the points of exits.

    The lines must be the first coloured layer of a chart: Vega binds clicks in the legend to the first one only.
    """
    exits = base.transform_filter("datum.kind == 'exit'")
    lines = exits.mark_line(strokeWidth=1.8, clip=True).encode(order="layer:Q").add_params(pick)
    shape = alt.Shape("arm:N", title=None, scale=arm_scale(ARM_SHAPES, arms))
    return lines, exits.mark_point(filled=True, size=36, clip=True).encode(shape=shape)


def _fused_exits(base: alt.Chart, table: pd.DataFrame) -> list[alt.Chart]:
    """Return the lines and the hollow points of fused exits; none where there are none."""
    if not (table["kind"] == "fused").any():
        return []
    fused = base.transform_filter("datum.kind == 'fused'")
    lines = fused.mark_line(strokeWidth=1.4, strokeDash=[7, 3], clip=True).encode(order="layer:Q")
    return [lines, fused.mark_point(size=30, fill="white", strokeWidth=1.4, clip=True)]


def _compressed_exits(base: alt.Chart, table: pd.DataFrame) -> list[alt.Chart]:
    """Return the triangles of exits that read compressed passages; nothing where there are none."""
    if not (table["kind"] == "compressed").any():
        return []
    return [
        base.transform_filter("datum.kind == 'compressed'").mark_point(
            shape="triangle-up", size=40, clip=True
        )
    ]


def _first_stage(primary: str, side: str) -> list[alt.Chart]:
    """Return the rule of the first stage and its name, at the `left` or `right` side."""
    rows = alt.Chart().transform_filter("datum.kind == 'first stage'").encode(y=_quality_axis(primary))
    x, dx = (alt.value("width"), -3) if side == "right" else (alt.value(0), 3)
    rule = rows.mark_rule(strokeDash=[4, 3], color=COLOURS["figure-rule"])
    text = {"align": side, "baseline": "top", "dx": dx, "dy": 4, "color": COLOURS["figure-text"]}
    return [rule, rows.mark_text(text="first stage", **text).encode(x=x)]


def _cascades(base: alt.Chart, pick: alt.Parameter) -> alt.Chart:
    # Keep the rows of exits, invisible: Vega warns of marks without data where a data set has no cascade.
    hidden = alt.when("datum.kind != 'cascade'").then(alt.value(0))
    opacity = hidden.when(pick).then(alt.value(1)).otherwise(alt.value(0.08))
    points = base.transform_filter("datum.kind != 'first stage'").encode(opacity=opacity)
    return points.mark_point(shape="diamond", size=130, fill="white", strokeWidth=2)


def _quality_axis(primary: str) -> alt.Y:
    # The padding leaves space for the text under the lowest rule.
    return alt.Y("quality:Q", title=f"{primary} (test)", scale=tight_scale(padding=18)).axis(tickCount=6)


def _note(table: pd.DataFrame, *sentences: str) -> list[str]:
    """Return the sentences above a figure, wrapped to its width."""
    cascade = "Diamonds: cascades chosen on dev." if (table["kind"] == "cascade").any() else ""
    fused = "Hollow circles: fused exits." if (table["kind"] == "fused").any() else ""
    compressed = "Triangles: compressed passages." if (table["kind"] == "compressed").any() else ""
    return textwrap.wrap(" ".join(filter(None, [cascade, fused, compressed, *sentences])), 62)
