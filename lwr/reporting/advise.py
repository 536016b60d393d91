"""The step `advise`: which layer or cascade to deploy, chosen on dev, with the results of the choice on test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from lwr.common.atomic import atomic
from lwr.common.errors import BadInput
from lwr.common.exits import (
    ARM_COLUMNS,
    CASCADES,
    Arm,
    compression_steps,
    fused_name,
    is_fused,
    is_layer,
    label,
    layer_of,
    sort_key,
)
from lwr.common.json_lines import read_json
from lwr.common.results_tree import ResultsTree
from lwr.evaluation.arm_files import describe_arm
from lwr.evaluation.calibrate import (
    KeptByThreshold,
    choose_threshold,
    measure_thresholds,
    read_judged_scores,
    read_logistic,
)
from lwr.formats.beir import Split
from lwr.model.cascade_schedule import Schedule
from lwr.reporting.evidence import (
    Evidence,
    best_arm,
    cascade_choices,
    deepest_exit,
    read_evidence,
    rows_of_arm,
)
from lwr.reporting.fused import CascadeChoice, add_costs, name_schedule
from lwr.reporting.tables import format_number, format_percent, overlapping

CHOSEN_AND_REPORTED: tuple[Split, Split] = ("dev", "test")
NAMED = 2
"""Number of exits that a sentence on doubtful times names."""
FLOPS_DECIDE = "Where the intervals of two times overlap, the choice with fewer FLOPs counts as no slower:"


def advise(
    tables: Path,
    out: Path,
    budget_ms: float | None = None,
    candidates: int | None = None,
    precision: float | None = None,
) -> None:
    """Write the recommendation of `advice_text` to the file `out`."""
    text = advice_text(tables, budget_ms, candidates, precision)
    with atomic(out) as draft:
        draft.write_text(text, encoding="utf-8")


def advice_text(
    tables: Path,
    budget_ms: float | None = None,
    candidates: int | None = None,
    precision: float | None = None,
) -> str:
    """Return the recommendation for each data set, as Markdown.

    It begins with what to deploy, the cascade chosen for the best model. Then it names the shallowest exit that is as
    good as the deepest, and the best exit or cascade within a latency budget, and gives the details of the cascade.
    Each is chosen on dev and reported on test.

    Args:
        tables: Folder of the tables.
        budget_ms: Milliseconds that 95 of 100 lists may take; None: the best choice for every budget.
        candidates: Passages of a list; None: as many as were timed. Times are scaled in proportion.
        precision: Share of relevant passages for which a threshold is wanted (`threshold_advice`); None: no threshold.

    Raises:
        BadInput: A table is missing, a budget is given and nothing was timed, or a precision that is no share.
    """
    if precision is not None and not 0 < precision <= 1:
        raise BadInput(f"--precision: {precision:g}; give a share above 0 and up to 1, such as 0.9")
    parts = [
        "# Which layer to deploy\n\nEverything is chosen on dev; the result on test is given with each choice."
    ]
    for dataset, evidence in read_evidence(tables).items():
        parts += [f"## {dataset}", *_advice(evidence, budget_ms, candidates)]
        parts += int8_advice(ResultsTree(tables.parent), best_arm(evidence))
        if precision is not None:
            parts.append(threshold_advice(ResultsTree(tables.parent), evidence, precision))
    return "\n\n".join(parts) + "\n"


def _advice(evidence: Evidence, budget_ms: float | None, candidates: int | None) -> Iterator[str]:
    best = best_arm(evidence)
    deepest = deepest_exit(evidence, best)
    yield headline(evidence, best)
    if evidence.chosen_on is not None:
        yield f"{best['dataset']} has no dev queries: dev is that of {evidence.chosen_on}, ranked by the same models."
    yield (
        f"The best model on dev is **{describe_arm(best)}**: its deepest exit, layer {deepest['layer']}, has "
        f"{evidence.primary} {deepest[f'dev {evidence.primary}']:.3f} there and {_score(evidence, deepest)} on test"
        f"{_fused_beside(evidence, deepest)} "
        f"(first stage: {evidence.layers.iloc[0][evidence.primary]:.3f})."
    )
    yield shallowest_exit_advice(evidence, best)
    yield _budget_advice(evidence, budget_ms, candidates)
    yield cascade_advice(evidence, best)


def _fused_beside(evidence: Evidence, deepest: pd.Series) -> str:
    """Return what the deepest exit has with fused scores, or nothing."""
    rows = rows_of_arm(evidence.layers, deepest[ARM_COLUMNS])
    rows = rows[rows["exit"] == fused_name(deepest["layer"])]
    return "".join(
        f"; fused, at the same cost, {row[f'dev {evidence.primary}']:.3f} and {_score(evidence, row)}"
        for _, row in rows.iterrows()
    )


# --- What to deploy ---


def headline(evidence: Evidence, arm: pd.Series) -> str:
    """Return what to deploy of an arm, in one paragraph.

    Where the schedule that keeps the quality of the deepest exit alone is not the one to deploy (`cascade_choices`), it
    is told as the cheap alternative.
    """
    choice, *others = cascade_choices(evidence, arm)
    row, warning = choice.row, _first_stage_warning(evidence, arm, choice.row)
    if choice.for_fused:
        warning += _cheap_alternative(evidence, others[0], row)
    rerank = f"**{arm['dataset']}: rerank with {choice.name}"
    if choice.is_deepest:
        return f"{rerank}, the deepest, of {describe_arm(arm)}**: {choice.missing()}.{warning}"
    bound = f"; {choice.bound()}" if choice.has_bound else ""
    on_dev = f"dev{choice.out_of_fold}: {choice.kept('dev'):.1%} at {row['dev flops']:.0%}{bound}"
    return (
        f"{rerank}, of {describe_arm(arm)}**: {row['test flops']:.0%} of the FLOPs of layer {row['deepest']}, the "
        f"deepest, at {choice.kept('test'):.1%} of its {'fused ' if choice.for_fused else ''}{row['measure']} on test "
        f"({on_dev}).{warning}"
    )


def _cheap_alternative(evidence: Evidence, cheap: CascadeChoice, deployed: pd.Series) -> str:
    """Say what the schedule that keeps the quality of the deepest exit alone costs; nothing if it is not cheaper."""
    row = cheap.row
    if row["test flops"] >= deployed["test flops"]:
        return ""
    first_stage = evidence.layers.iloc[0][f"dev {evidence.primary}"]
    is_no_better = row["measure"] == evidence.primary and first_stage >= row["dev"]
    no_better = ", no better than the first stage alone on dev" if is_no_better else ""
    return (
        f" Cheaper: {cheap.name}{',' if row['fused'] else ''} at {row['test flops']:.0%} of the FLOPs keeps "
        f"{cheap.kept('test'):.1%} of {cheap.deepest}'s own {row['measure']} on test{no_better}."
    )


def _first_stage_warning(evidence: Evidence, arm: pd.Series, chosen: pd.Series) -> str:
    """Say that the first stage ranks dev no worse than the chosen schedule, and what ranks better; or nothing."""
    dev = f"dev {evidence.primary}"
    first_stage = evidence.layers.iloc[0][dev]
    if chosen["measure"] != evidence.primary or first_stage < chosen["dev"]:
        return ""
    warning = f" The first stage alone ranks dev no worse ({first_stage:.3f}): "
    exits = rows_of_arm(evidence.layers, arm)
    best = exits.loc[exits[dev].idxmax()]
    if best["exit"] in CASCADES or best[dev] <= first_stage:
        return f"{warning}reranking may not pay."
    name = label(best["exit"]).capitalize() + ("," if is_fused(best["exit"]) else "")
    return (
        f"{warning}this schedule saves time and does not rank better. {name} has {best[dev]:.3f} on dev and "
        f"{_score(evidence, best)} on test."
    )


# --- The shallowest exit that is as good ---


def comparisons_to_deepest(
    evidence: Evidence, arm: pd.Series, split: str, fused: bool = False
) -> pd.DataFrame:
    """Return the comparisons of an arm's exits to its deepest on one split, by exit, the shallowest first.

    Args:
        evidence: The tables.
        arm: Values by ARM_COLUMNS.
        split: `dev` or `test`.
        fused: Whether fused exits are among them.
    """
    rows = rows_of_arm(evidence.comparisons, arm)
    rows = rows[(rows["family"] == "deepest") & (rows["split"] == split)].set_index("exit")
    names = [exit for exit in rows.index if is_layer(exit) or (fused and is_fused(exit))]
    return rows.loc[sorted(names, key=sort_key)]


def shallowest_exit_advice(evidence: Evidence, arm: pd.Series) -> str:
    """Advise on the shallowest exit of an arm that is as good as the deepest on dev, with its result on test."""
    deepest = deepest_exit(evidence, arm)
    title = f"### The shallowest exit as good as layer {deepest['layer']}\n\n"
    margin = f"{evidence.margin:g} {evidence.primary}"
    dev, test = (comparisons_to_deepest(evidence, arm, split, fused=True) for split in ("dev", "test"))
    layers = dev.index.map(layer_of)
    dev = dev[layers < deepest["layer"]]
    as_good = dev[dev["noninferior"].astype(bool)]
    if as_good.empty:
        return (
            f"{title}**Layer {deepest['layer']}** itself: on dev, no shallower exit is shown to lose less than {margin}"
            f"{_closest(dev)}."
        )
    shallowest = as_good[as_good.index.map(layer_of) == layer_of(as_good.index[0])]  # alone, fused, or both
    exit = shallowest["difference"].idxmax()
    on_dev, on_test = as_good.loc[exit], test.loc[exit]
    family = evidence.comparisons[["family", "split"]].value_counts()["deepest", "dev"]
    confirmed = "confirms it" if on_test["noninferior"] in (True, "True") else "does not confirm it"
    return (
        f"{title}**{label(exit).capitalize()}**. Dev: {format_difference(on_dev)} to layer {deepest['layer']}, so "
        f"it loses less than {margin} (one-sided p = {on_dev['p noninferior Holm']:.3f} by Holm's method "
        f"over the {family} exits and cascades of all models that are compared to their deepest).\n"
        f"Test {confirmed}: {format_difference(on_test)}, p = {on_test['p noninferior Holm']:.3f}. "
        f"{_price(evidence, arm, exit)}"
    )


def _closest(dev: pd.DataFrame) -> str:
    if dev.empty:
        return ""
    closest = dev.loc[dev["p noninferior"].idxmin()]
    return f" (the closest, {label(closest.name)}: {format_difference(closest)})"


def format_difference(comparison: pd.Series | dict[str, float]) -> str:
    """Format the difference of a comparison with its interval."""
    return f"{comparison['difference']:+.3f} [{comparison['low']:+.3f}, {comparison['high']:+.3f}]"


# --- Within a budget ---


def timed_exits(evidence: Evidence, candidates: int | None) -> pd.DataFrame:
    """Return the exits and cascades that were timed.

    Args:
        evidence: The tables.
        candidates: Passages of a list, for times in ms; None: as many as were timed.

    Returns:
        The columns of the table of layers; ratio and `p95 ms`, each also with `low` and `high`; `from ms`, the least
        budget that counts as enough. Where the intervals of two times overlap, the one with fewer FLOPs counts as no
        slower.
    """
    times = ["p95 ms", "ratio", "ratio low", "ratio high", "candidates"]
    table = add_costs(evidence.layers.drop(columns="p95 ms"), evidence.cost, times).dropna(subset="ratio")
    if candidates is not None:
        table["p95 ms"] *= candidates / table["candidates"]
    for end in ("low", "high"):
        table[f"p95 ms {end}"] = table["p95 ms"] * (table[f"ratio {end}"] / table["ratio"])
    table["from ms"] = [_least_ms(table, row) for _, row in table.iterrows()]
    return table


def _least_ms(table: pd.DataFrame, row: pd.Series) -> float:
    """Return the least time of exits that take no fewer FLOPs than `row` and that times do not tell from it."""
    alike = overlapping(table, row)
    return alike.loc[alike["gflops per pair"] >= row["gflops per pair"], "p95 ms"].min()


def latency_front(evidence: Evidence, timed: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `timed_exits` that no faster one beats on dev, the fastest first."""
    dev = f"dev {evidence.primary}"
    timed = timed.sort_values(["from ms", dev, "gflops per pair"], ascending=[True, False, True])
    return timed[timed[dev] > timed[dev].cummax().shift(fill_value=-1)]


def _budget_advice(evidence: Evidence, budget_ms: float | None, candidates: int | None) -> str:
    title = "### The best within a latency budget\n\n"
    if evidence.cost["ratio"].isna().all():
        if budget_ms is not None:
            raise BadInput(
                "nothing was timed in this grid; set `cost: {queries: 20}` in its config and run it again"
            )
        return f"{title}Nothing was timed (`cost: queries` in the config)."
    timed = timed_exits(evidence, candidates)
    measured = evidence.cost["candidates"].iloc[0]
    lists = f"lists of {candidates or measured} candidates on {evidence.cost['device'].iloc[0]}"
    if candidates not in (None, measured):
        lists += f" (scaled from {measured})"
    if budget_ms is None:
        told = f"By what 95 of 100 {lists} take, with the 95% interval of each time ({evidence.primary}):"
        return f"{title}{told}\n\n{_budget_table(evidence, timed)}"
    return title + _choose_within(evidence, timed, budget_ms, lists)


def _budget_table(evidence: Evidence, timed: pd.DataFrame) -> str:
    """Return a Markdown table of the best choice from each latency on, and what its times do not tell apart."""
    lines, doubts = ["| from ms | take | ms | dev | test |", "|--:|:--|--:|--:|--:|"], []
    for _, row in latency_front(evidence, timed).iterrows():
        values = [format_number(row["from ms"]), _choice(row), _milliseconds(row)]
        values += [f"{row[f'dev {evidence.primary}']:.3f}", _score(evidence, row)]
        lines.append(f"| {' | '.join(values)} |")
        doubts += [f"- {doubt}" for doubt in _doubts(evidence, timed, row)]
    return "\n".join(lines) + ("\n\n" + "\n".join([FLOPS_DECIDE, "", *doubts]) if doubts else "")


def _choose_within(evidence: Evidence, timed: pd.DataFrame, budget_ms: float, lists: str) -> str:
    front, budget = latency_front(evidence, timed), format_number(budget_ms)
    within = front[front["from ms"] <= budget_ms]
    if within.empty:
        fastest = front.iloc[0]
        return f"Nothing: the fastest, {_choice(fastest)}, takes {_milliseconds(fastest)} ms for {lists}."
    best = within.iloc[-1]
    text = (
        f"**{_choice(best)}**: 95 of 100 {lists} take at most {_milliseconds(best)} ms. "
        f"Of all within {budget} ms it ranks dev best, {evidence.primary} {best[f'dev {evidence.primary}']:.3f}; "
        f"on test it has {_score(evidence, best)}."
    )
    if best["p95 ms high"] > budget_ms:
        text += f" The interval of its time reaches above {budget} ms."
    return " ".join([text, *_doubts(evidence, timed, best)])


def _doubts(evidence: Evidence, timed: pd.DataFrame, row: pd.Series) -> list[str]:
    """Return a sentence on the exits that may be as fast as `row` and would be chosen if they are; or none."""
    others = overlapping(timed, row).drop(index=row.name)
    dev = f"dev {evidence.primary}"
    others = others[(others[dev] > row[dev]) | (others["p95 ms"] < row["p95 ms"])].sort_values("p95 ms")
    if others.empty:
        return []
    named = [f"{_choice(other)} ({_milliseconds(other)} ms)" for _, other in others.head(NAMED).iterrows()]
    if len(others) > NAMED:
        named.append(f"{len(others) - NAMED} more")
    return [f"The times do not tell {_choice(row)} from {' and from '.join(named)}."]


def _milliseconds(row: pd.Series) -> str:
    """Format `p95 ms` with its interval."""
    ms, low, high = (format_number(row[f"p95 ms{end}"]) for end in ("", " low", " high"))
    return f"{ms} [{low}, {high}]"


# --- The cascade ---


def cascade_advice(evidence: Evidence, arm: pd.Series) -> str:
    """Advise on the cascades of an arm that were chosen on dev, with their results on test; the best choice first."""
    choices = [_describe_choice(evidence, arm, choice) for choice in cascade_choices(evidence, arm)]
    return "\n\n".join(["### The best cascade", *choices])


def _describe_choice(evidence: Evidence, arm: pd.Series, choice: CascadeChoice) -> str:
    if choice.is_deepest:
        return f"None: {choice.missing()}."
    chosen, deepest = choice.row, choice.reference
    kept = {split: choice.kept(split) for split in ("dev", "test")}
    quality = {split: f"{chosen[split]:.3f} of {deepest[split]:.3f}" for split in kept}
    verdict = "holds that on test" if kept["test"] >= 1 - chosen["epsilon"] else "does not hold that on test"
    at_half = "yes" if kept["test"] >= 0.99 and chosen["test flops"] <= 0.5 else "no"
    fused = ", fused" if chosen["fused"] else ""
    confidence = f" with {choice.confidence}" if choice.has_bound else ""
    return (
        f"**`{chosen['schedule']}`{fused}**: {describe_schedule(chosen['schedule'])}. "
        f"On dev it is the cheapest that keeps {choice.goal}{confidence}: {kept['dev']:.1%} "
        f"({quality['dev']}{choice.out_of_fold}) at {chosen['dev flops']:.0%} of its FLOPs.{_expectation(choice)}\n"
        f"It {verdict}: {kept['test']:.1%} ({quality['test']}) at {chosen['test flops']:.0%}; "
        f"99% at half the FLOPs: {at_half}. {_price(evidence, arm, choice.exit)}{_use_of_weights(choice)}"
    )


def _expectation(choice: CascadeChoice) -> str:
    """Say what as many new queries as dev has are expected to lose, or nothing where that was not estimated."""
    if not choice.has_bound:
        return ""
    loss = choice.expected("expected shortfall")
    expected = f"lose {loss:.1%}" if loss >= 0 else f"gain {-loss:.1%}"
    return f" It is expected to {expected} on as many new queries; {choice.bound()}."


def _use_of_weights(choice: CascadeChoice) -> str:
    if not choice.row["fused"]:
        return ""
    return (
        " Its weights were fitted to the scores of this first stage, and are of no use with another "
        "(`lwr rerank --fused`)."
    )


def describe_schedule(schedule: str) -> str:
    """Describe a schedule such as `0:50 2/2:20 6` in words; layer 0 is the first stage."""
    plan = Schedule.parse(schedule)
    survivors, ratios = dict(plan.keep), dict(plan.steps)
    words = []
    for layer in sorted({*survivors, *ratios}):
        if layer in survivors:
            stage = "the first stage" if layer == 0 else f"layer {layer}"
            words.append(f"{stage} keeps the best {survivors[layer]}")
        if layer in ratios:
            words.append(f"after layer {layer} each {ratios[layer]} passage tokens become one")
    return ", ".join([*words, f"layer {plan.last} ranks {'them' if survivors else 'all'}"])


# --- The data type of the scores ---


def int8_advice(tree: ResultsTree, arm: pd.Series) -> Iterator[str]:
    """Yield what the exits of an arm lose in int8 on dev, if they were scored so.

    Args:
        tree: The results of the grid.
        arm: Values by ARM_COLUMNS.
    """
    file = tree.precision(
        Arm(arm["trained_on"], arm["base_model"], arm["start_layer"], arm["variant"]), arm["dataset"]
    )
    if not file.is_file():
        return
    record = read_json(file, {"precision": str, "measure": str, "dev queries": int, "exits": list})
    precision, measure = record["precision"], record["measure"]
    lines = [f"| exit | {measure}, float32 | {precision} - float32 |", "|:--|--:|:--|"]
    lines += [
        f"| {label(row['exit'])} | {row['float32']:.3f} | {format_difference(row)} |"
        for row in record["exits"]
    ]
    table = "\n".join(lines)
    yield (
        f"### What {precision} loses\n\nAll scores are computed in {precision}. Those of {describe_arm(arm)} "
        f"were computed in float32, too, on {record['dev queries']} dev queries:\n\n{table}"
    )


# --- The threshold ---


def threshold_advice(tree: ResultsTree, evidence: Evidence, precision: float) -> str:
    """Advise on the lowest score of the exit to deploy from which on passages have a precision, for each seed.

    It is chosen on dev by the lower end of an interval (`choose_threshold`), from all candidates: as if the exit scored
    those that a cascade drops, too.

    Raises:
        BadInput: The scores, judgements or calibrations that the tables are of are missing.
    """
    best = best_arm(evidence)
    row = cascade_choices(evidence, best)[0].row
    schedule, is_fused_choice = Schedule.parse(row["schedule"]), bool(row["fused"])
    plain = schedule.exit_at(schedule.last)
    exit = fused_name(schedule.last, compression_steps(plain)) if is_fused_choice else plain
    dataset, *values = best[ARM_COLUMNS]
    arm, judged = Arm(*values), {"dev": evidence.chosen_on or dataset, "test": dataset}
    fusion = tree.fusion(arm, dataset) if is_fused_choice else None
    lines = [
        "| seed | score from | probability | dev precision | dev recall | test precision | test recall |"
    ]
    lines, missing = [*lines, "|--:|--:|--:|:--|--:|:--|--:|"], []
    cells = tree.cells_on_disk(arm)
    if not cells:
        raise BadInput(f"{tree.arm(arm)}: no cell of the recommended model; --precision reads its scores")
    for cell in cells:
        logistic = read_logistic(tree.calibration(cell, dataset), exit)
        dev, test = (
            read_judged_scores(
                tree.scores(cell, judged[split], split), tree.collection(judged[split]), split, fusion
            )
            for split in CHOSEN_AND_REPORTED
        )
        chosen, closest = choose_threshold(dev.of(exit), dev, precision)
        if chosen is None:
            missing.append(
                f"Seed {cell.seed}: no threshold on dev has this precision{_closest_threshold(closest)}."
            )
            continue
        [on_test] = measure_thresholds(test.of(exit), test, np.array([chosen.threshold]))
        probability = logistic.probabilities(np.array(chosen.threshold))
        values = [str(cell.seed), f"{chosen.threshold:.6g}", f"{probability:.4g}"]
        for kept in (chosen, on_test):
            values += [_precision(kept), format_percent(kept.recall)]
        lines.append(f"| {' | '.join(values)} |")
    name = f"{label(plain)}{', fused' if is_fused_choice else ''}"
    title = f"### The lowest threshold with a precision of {precision:.4g}"
    about = (
        f"Of the candidates of all dev queries that score at least this at {name}, the share that is relevant is "
        f"{precision:.4g} or more by the lower end of its 95% interval over queries. Recall is the share of the "
        "relevant candidates that is kept. Candidates that are not judged count as not relevant."
    )
    if schedule.keep:
        about += (
            f" All candidates count, also those that `{row['schedule']}` drops before layer {schedule.last}."
        )
    table = ["\n".join(lines)] if len(missing) < len(cells) else []
    return "\n\n".join([title, about, *table, *missing])


def _closest_threshold(closest: KeptByThreshold | None) -> str:
    if closest is None:
        return ": no candidate is relevant"
    kept = f"the best {closest.kept:,} candidates" if closest.kept > 1 else "the best candidate"
    return f"; {kept}, from score {closest.threshold:.6g} on, come closest with {_precision(closest)}"


def _precision(kept: KeptByThreshold) -> str:
    if not kept.kept:
        return "none is kept"
    return f"{kept.precision:.3f} [{kept.low:.3f}, {kept.high:.3f}]"


# --- Formatting ---


def _choice(row: pd.Series) -> str:
    what = name_schedule(row["schedule"] if row["exit"] in CASCADES else str(row["layer"]), row["fused"])
    if row["compression"]:
        what = f"{what}, passages compressed {row['compression']},"
    return f"{what}{', of' if row['fused'] else ' of'} {describe_arm(row)}"


def _score(evidence: Evidence, row: pd.Series) -> str:
    name = evidence.primary
    return f"{row[name]:.3f} [{row[f'{name} low']:.3f}, {row[f'{name} high']:.3f}]"


def _price(evidence: Evidence, arm: pd.Series, exit: str) -> str:
    deepest = deepest_exit(evidence, arm)["exit"]
    rows = rows_of_arm(evidence.layers, arm)[[*ARM_COLUMNS, "exit", "schedule"]]
    columns = ["flops", "time", "p50 ms", "ratio low", "ratio high"]
    costs = add_costs(rows, evidence.cost, columns).set_index("exit")
    flops, time, ms = (costs.loc[exit, name] for name in ("flops", "time", "p50 ms"))
    timed = "" if pd.isna(time) else f" and {format_percent(time)} of its time, {format_number(ms)} ms a list"
    if exit in overlapping(costs, costs.loc[deepest]).index:
        timed += ", which the measurement does not tell from the deepest exit's"
    return f"It takes {format_percent(flops)} of the deepest exit's FLOPs{timed}."
