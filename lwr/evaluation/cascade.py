"""Choose a cascade: a schedule in which only the best candidates of an exit go on to the next one.

Schedules are tried on scores that exist already: which candidates survive follows from the scores
(`lwr.evaluation.schedules.search`), and what a schedule costs follows from the candidates' tokens. The chosen one later
runs in one forward pass, as `LayerwiseReranker.cascade`.

With fused scores, schedules whose exits prune and rank by these are tried beside the plain ones, on weights that were
fitted without the query they rank, and the choice is made with confidence (`lwr.evaluation.schedules.choice`). It is
made twice: the cheapest schedule that keeps the quality of the deepest exit alone, and the cheapest that keeps that of
the deepest fused exit. Without fused scores, the mean on dev decides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lwr.common.errors import BadInput
from lwr.common.exits import CASCADE, CASCADE_FOR_FUSED, CASCADES, compressions_in, model_exits_in
from lwr.common.hashing import sha256
from lwr.common.json_lines import write_json
from lwr.common.progress import log
from lwr.config.evaluation import CascadeSearchConfig
from lwr.evaluation.arm_files import CHOSEN_COLUMNS, read_arm_fusion
from lwr.evaluation.flops import BackboneShape, read_shape
from lwr.evaluation.schedules.choice import Choice, choose_schedule
from lwr.evaluation.schedules.front import pareto_front
from lwr.evaluation.schedules.replay import Candidates, read_candidates, read_scores
from lwr.evaluation.schedules.search import MeasuredSchedules, enumerate_schedules, measure_schedules
from lwr.formats.beir import Qrels, Split, answerable_queries, read_qrels
from lwr.model.cascade_schedule import Compression, Schedule


@dataclass(frozen=True)
class ChoiceRule:
    """By what a cascade is chosen."""

    measure: str = "nDCG@10"
    fusion: Path | None = None  # JSON that `lwr fuse` wrote
    confidence: float = 0.9  # with fused scores

    @property
    def is_fused(self) -> bool:
        """Whether schedules prune and rank by fused scores."""
        return self.fusion is not None


def cascade(
    model: Path,
    dev: Sequence[Path],
    test: Sequence[Path],
    collection: Path,
    settings: CascadeSearchConfig,
    arm: dict[str, str | int],
    out: Path,
    rule: ChoiceRule = ChoiceRule(),
    label: str = "cascade",
    dev_collection: Path | None = None,
) -> None:
    """Choose schedules on dev; write them as JSON, with the Pareto front of dev and the results of all on test.

    Args:
        model: The folder of one of the trainings, for its shapes.
        dev: The scores of each seed's training, Parquet as `lwr score` writes it.
        test: The same for test.
        collection: BEIR folder with the judgements.
        settings: Limits on the schedules to try, and the share of quality that the chosen one may lose.
        arm: The columns that identify the arm, written at the top of the file.
        out: The file to write.
        rule: The measure, the weights of fused scores if there are any, and the confidence.
        label: Printed before each line of progress.
        dev_collection: BEIR folder with the judgements of dev, if `collection` has no dev queries; its name is written.

    Raises:
        BadInput: No query is judged, no judged query has a candidate, or the weights are of other exits.
    """
    shape = read_shape(model)
    dev_folder = dev_collection or collection
    on_dev = _read_split(dev, dev_folder, "dev", shape, rule)
    on_test = _read_split(test, collection, "test", shape, rule)
    deepest = str(on_dev.alone[0].deepest)
    decision = _decide(on_dev, settings, deepest, rule, label)
    tried, chosen = decision.tried, decision.chosen[CASCADE]
    log(f"{label}: tried {len(tried)} schedules on {len(on_dev.qrels)} queries")
    record: dict[str, Any] = {
        **arm,
        **({} if dev_collection is None else {"chosen_on": dev_collection.name}),
        "measure": rule.measure,
        "epsilon": settings.epsilon,
        "tried": len(tried),
        "deepest": deepest,
        "chosen": tried["schedule"][chosen],
        **decision.about,
        "schedules": _report_schedules(decision, deepest, on_test, rule).to_dict("records"),
        "inputs": _checksums(dev, test, {"dev": dev_folder, "test": collection}, rule),
    }
    write_json(out, record)


def _checksums(
    dev: Sequence[Path], test: Sequence[Path], collections: dict[str, Path], rule: ChoiceRule
) -> dict[str, Any]:
    inputs: dict[str, Any] = {
        "dev": [sha256(file) for file in dev],
        "test": [sha256(file) for file in test],
        "qrels": {split: sha256(folder / f"qrels/{split}.tsv") for split, folder in collections.items()},
    }
    return inputs if rule.fusion is None else inputs | {"fusion": sha256(rule.fusion)}


# --- The candidates of a split ---


@dataclass(frozen=True)
class RankedSplit:
    """The candidates of the queries of a split that have a relevant passage, ranked by each seed's training."""

    alone: list[Candidates]  # ranked by each exit alone
    fused: list[Candidates]  # ranked by fused scores; empty without weights
    qrels: Qrels
    shape: BackboneShape
    measured_by: str

    def measure(
        self, schedules: Sequence[Schedule], fused: bool, label: str | None = None
    ) -> MeasuredSchedules:
        """Measure schedules whose exits prune and rank by fused scores, or each by its own."""
        seeds = self.fused if fused else self.alone
        return measure_schedules(seeds, self.qrels, self.shape, schedules, self.measured_by, label)


def _read_split(
    paths: Sequence[Path], collection: Path, split: Split, shape: BackboneShape, rule: ChoiceRule
) -> RankedSplit:
    judged = answerable_queries(read_qrels(collection, split))
    if not judged:
        raise BadInput(
            f"{collection}/qrels/{split}.tsv: no query has a relevant passage; a cascade needs some"
        )
    tables = [read_scores(path) for path in paths]
    alone = [read_candidates(table, sorted(judged)) for table in tables]
    if not alone[0].docs.size:
        raise BadInput(f"{paths[0]}: no judged query of {split} has a candidate; retrieve and score again")
    fused = []
    if rule.fusion is not None:
        weights = read_arm_fusion(rule.fusion, model_exits_in(tables[0]), cross_fitted=split == "dev")
        fused = [read_candidates(table, sorted(judged), weights) for table in tables]
    return RankedSplit(alone, fused, judged, shape, rule.measure)


# --- The choice ---


@dataclass(frozen=True)
class Decision:
    """The schedules that were tried on dev, and the chosen ones."""

    tried: pd.DataFrame  # columns schedule, flops, quality, fused
    chosen: dict[str, int]  # name of its exit -> its row; without fused scores `cascade` alone
    about: dict[str, Any]  # what the file says about choices with confidence; empty without


def _decide(
    on_dev: RankedSplit, settings: CascadeSearchConfig, deepest: str, rule: ChoiceRule, label: str
) -> Decision:
    """Try all schedules on dev and choose: among plain and fused ones with confidence, otherwise by the mean."""
    plain = _try_schedules(on_dev, settings, False, label)
    table = plain.table().assign(fused=False)
    if not rule.is_fused:
        return Decision(table, {CASCADE: cheapest_within(table, deepest, settings.epsilon)}, {})
    fused = _try_schedules(on_dev, settings, True, label)
    table = pd.concat([table, fused.table().assign(fused=True)], ignore_index=True)
    queries = len(on_dev.qrels)
    about: dict[str, Any] = {"confidence": rule.confidence, "dev queries": queries}
    rows = {}
    for exit in CASCADES:
        for_fused = exit == CASCADE_FOR_FUSED
        row, choice = choose_with_confidence(
            plain, fused, deepest, settings.epsilon, rule.confidence, for_fused
        )
        rows[exit] = row
        if choice.index is None:
            reference = f"the deepest exit{', fused' if for_fused else ' alone'}"
            explained = _explain_fallback(choice, settings.epsilon, rule.confidence, queries, reference)
            log(f"{label}: {explained}")
        told = _describe_choice(choice) | {"fused": bool(table["fused"][row])}
        about |= {"for_fused": {"chosen": table["schedule"][row], **told}} if for_fused else told
    return Decision(table, rows, about)


def _try_schedules(
    on_dev: RankedSplit, settings: CascadeSearchConfig, fused: bool, label: str
) -> MeasuredSchedules:
    """Measure every schedule that the settings and the scored widths allow.

    If fused, the first stage may prune, too.
    """
    candidates = on_dev.alone[0]
    longest = candidates.docs.shape[1]
    compressions = [Compression(steps) for steps in compressions_in(candidates.ranks)]
    schedules = enumerate_schedules(candidates.layers, longest, settings, fused, compressions)
    return on_dev.measure(list(schedules), fused, label)


def cheapest_within(measured: pd.DataFrame, deepest: str, epsilon: float) -> int:
    """Return the row of the cheapest schedule that keeps at least 1 - epsilon of the deepest exit's quality."""
    quality = measured.set_index("schedule")["quality"]
    front = pareto_front(measured)
    return int(front.index[front["quality"] >= (1 - epsilon) * quality[deepest]][0])


def choose_with_confidence(
    plain: MeasuredSchedules,
    fused: MeasuredSchedules,
    deepest: str,
    epsilon: float,
    confidence: float,
    for_fused: bool = False,
) -> tuple[int, Choice]:
    """Choose the cheapest schedule, plain or fused, that keeps 1 - epsilon of the deepest exit's quality.

    Args:
        plain: The schedules of exits alone, on dev; that of the deepest exit is among them.
        fused: The schedules of fused scores, on the same queries; that of the deepest exit is among them.
        deepest: The schedule of the deepest exit.
        epsilon: The share of its quality that may be lost.
        confidence: The confidence of the choice.
        for_fused: Whether the quality to keep is that of the deepest exit's fused scores, not of its own.

    Returns:
        The row of the chosen schedule in `plain` and then `fused`; that of the deepest exit whose quality is to be kept
        if none is certain enough. And what `lwr.evaluation.schedules.choice` says of the choice.
    """
    quality = np.vstack([plain.quality, fused.quality])  # [S, Q]
    names = [str(schedule) for schedule in (*plain.schedules, *fused.schedules)]
    fallback = names.index(deepest, len(plain.schedules) if for_fused else 0)
    others = np.delete(np.arange(len(quality)), fallback)
    flops = np.hstack([plain.flops, fused.flops])[others]
    choice = choose_schedule(quality[others], flops, quality[fallback], epsilon, confidence)
    return (fallback if choice.index is None else int(others[choice.index])), choice


def _report_schedules(
    decision: Decision, deepest: str, on_test: RankedSplit, rule: ChoiceRule
) -> pd.DataFrame:
    """Return the Pareto front of dev, the deepest exit and the chosen schedules, with their results on test.

    Where schedules may compress passages, the front of those that do not is there, too: it shows what this saves.

    Args:
        decision: The schedules that were tried, and the chosen ones.
        deepest: The schedule of the deepest exit.
        on_test: The candidates of test.
        rule: Whether scores are fused.
    """
    table = decision.tried
    front = pareto_front(table).index
    complete = pareto_front(table[~table["schedule"].str.contains("/")]).index
    rows = [*front, *complete, *table.index[table["schedule"] == deepest], *decision.chosen.values()]
    reported = table.loc[list(dict.fromkeys(rows))]
    by_kind = [
        on_test.measure([Schedule.parse(text) for text in rows["schedule"]], bool(fused))
        .table()
        .set_index(rows.index)
        for fused, rows in reported.groupby("fused")
    ]
    measured = pd.concat(by_kind).loc[reported.index]
    reported = reported.rename(columns={"flops": "dev flops", "quality": "dev"}).assign(
        **{
            "test flops": measured["flops"],
            "test": measured["quality"],
            **{CHOSEN_COLUMNS[exit]: reported.index == row for exit, row in decision.chosen.items()},
            "front": reported.index.isin(front),
        }
    )
    fused = reported.pop("fused")
    return reported.assign(fused=fused) if rule.is_fused else reported


def _describe_choice(choice: Choice) -> dict[str, Any]:
    """Return what the file says about a choice among fused schedules; null where nothing could be chosen."""
    return {
        "margin": choice.margin if math.isfinite(choice.margin) else None,
        "expected shortfall": choice.shortfall if math.isfinite(choice.shortfall) else None,
        "shortfall bound": choice.shortfall_bound if math.isfinite(choice.shortfall_bound) else None,
        "queries needed": choice.queries_needed,
    }


def _explain_fallback(choice: Choice, epsilon: float, confidence: float, queries: int, reference: str) -> str:
    if choice.queries_needed is None:
        needed = "none keeps it on these queries even without a margin"
    else:
        needed = f"at least about {choice.queries_needed} dev queries are needed"
    return (
        f"no schedule keeps {1 - epsilon:.1%} of {reference} at a confidence of {confidence:.0%} on {queries} dev "
        f"queries ({needed}); chose {reference}"
    )
