"""The recommendation: what is chosen on dev, and how its results on test are worded."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lwr.common.errors import BadInput
from lwr.common.exits import ARM_COLUMNS, Cell
from lwr.common.json_lines import write_json
from lwr.common.results_tree import ResultsTree
from lwr.config.evaluation import FusionConfig
from lwr.evaluation.calibrate import calibrate
from lwr.evaluation.fuse import fuse
from lwr.formats.beir import Passage, write_collection
from lwr.reporting.advise import (
    advice_text,
    advise,
    best_arm,
    comparisons_to_deepest,
    describe_schedule,
    read_evidence,
)
from lwr.reporting.fused import CascadeChoice, name_schedule

ARMS = {"one": ("d", "d", "one", 2, "v"), "two": ("d", "d", "two", 3, "v")}
ONE = {2: (0.30, 0.35), 3: (0.49, 0.44), 4: (0.50, 0.45)}
TWO = {3: (0.20, 0.60), 4: (0.40, 0.70)}
"""Quality on dev and on test, by layer: by dev, one is better, by test two."""
MS = {2: 10.0, 3: 15.0, 4: 20.0, "cascade": 12.0, "cascade_for_fused": 17.0}
FOUR_OF_ONE = "layer 4 of one, start 2, v"


def arm_of(name: str, dataset: str, trained_on: str) -> dict:
    return dict(zip(ARM_COLUMNS, ARMS[name], strict=True)) | {
        "dataset": dataset,
        "trained_on": trained_on or dataset,
    }


def rows(
    name: str = "one",
    quality: dict[int, tuple[float, float]] = ONE,
    as_good: dict[int, tuple[bool, bool]] | None = None,
    schedule: str | None = None,
    worth: tuple[float, float] = (0.495, 0.448),
    flops: tuple[float, float] = (0.4, 0.45),
    timed: float | None = 1.0,
    spread: float = 0.01,
    dataset: str = "d",
    trained_on: str = "",
    fused: dict[int, tuple[float, float]] | None = None,
    bound: dict | None = None,
    second: dict | None = None,
) -> dict[str, list[dict]]:
    """The rows of one arm in each table.

    as_good: layer or `layer_3_fused` -> is it not inferior to the deepest, on dev and on test? worth, flops: of the
    cascade, on dev and on test. timed: how much slower than MS. spread: of the ratio of times to 20 ms, up and
    down. fused: quality of fused exits. bound: how a fused cascade was chosen. second: the schedule, the
    quality (worth) and the FLOPs of the choice against the deepest fused exit, and its shortfalls; the schedule may be
    that of a row that is there.
    """
    arm = arm_of(name, dataset, trained_on)
    deepest = max(quality)
    exits = {k: (f"layer_{k}", k, str(k), *value) for k, value in quality.items()}
    for k, value in (fused or {}).items():
        exits[f"layer_{k}_fused"] = (f"layer_{k}_fused", k, "", *value)
    if schedule:
        exits["cascade"] = ("cascade", int(schedule.split()[-1]), schedule, *worth)
    if second and second["schedule"] not in (schedule, str(deepest)):
        text = second["schedule"]
        exits["cascade_for_fused"] = ("cascade_for_fused", int(text.split()[-1]), text, *second["worth"])
    layers, cost, cascades, comparisons = [], [], [], []
    for key, (exit, layer, text, dev, test) in exits.items():
        share = layer / deepest
        if exit.startswith("cascade"):
            share = flops[1] if exit == "cascade" else second["flops"][1]
        ms = None if timed is None else MS.get(key, MS[layer]) * timed
        between = {"nDCG@10 low": test - 0.05, "nDCG@10 high": test + 0.05, "p95 ms": ms}
        between["gflops per pair"] = 2 * share
        if fused:
            between["fused"] = "fused" in exit or exit == "cascade"
        told = {"schedule": text if exit.startswith("cascade") else ""}
        told |= {"nDCG@10": test, "dev nDCG@10": dev}
        layers.append(arm | {"exit": exit, "layer": layer} | told | between)
        shares = {"flops": share, "time": None if ms is None else MS.get(key, MS[layer]) / MS[deepest]}
        ratios = {
            f"ratio{end}": ms and ms / 20 + off
            for end, off in (("", 0), (" low", -spread), (" high", spread))
        }
        spent = ratios | {"p50 ms": ms and ms - 1, "p95 ms": ms, "candidates": 10, "device": "a lathe"}
        if not exit.endswith("_fused") or exit.startswith("cascade"):
            cost.append(arm | {"exit": exit, "schedule": text} | shares | spent)
        for split, value, place in (("dev", dev, 0), ("test", test, 1)):
            told = {"split": split, "exit": exit, "measure": "nDCG@10", "margin": 0.02}
            seen = {
                "family": "deepest",
                "difference": value - quality[deepest][place],
                "low": -0.03,
                "high": 0.01,
            }
            good = (as_good or {}).get(key, (False, False))[place]
            p = {"p noninferior": 0.01 if good else 0.4, "p noninferior Holm": 0.012 if good else 0.8}
            if exit != f"layer_{deepest}":
                comparisons.append(arm | told | seen | p | {"noninferior": good})
            other = {"family": "first stage", "noninferior": None, "p noninferior": None}
            comparisons.append(arm | told | seen | other)
    points = [(str(deepest), schedule is None, (1.0, quality[deepest][0], 1.0, quality[deepest][1]))]
    if schedule:
        points.append((schedule, True, (flops[0], worth[0], flops[1], worth[1])))
    for text, chosen, point in points:
        about = {"deepest": str(deepest), "epsilon": 0.01, "measure": "nDCG@10", "schedule": text}
        about |= dict(zip(["dev flops", "dev", "test flops", "test"], point, strict=True))
        cascades.append(arm | about | {"chosen": chosen, "front": True})
        if bound:
            cascades[-1] |= bound | {"fused": chosen and schedule is not None}
    if second:
        cascades += _second_choice(cascades, fused, deepest, **second)
    return {"layers": layers, "cost": cost, "cascades": cascades, "comparisons": comparisons}


def _second_choice(rows, fused, deepest, schedule, worth=None, flops=None, **told) -> list[dict]:
    """Mark the schedule that is chosen against the deepest fused exit; return the rows that are not there yet."""
    dev, test = fused[deepest]
    alone = {"schedule": str(deepest), "fused": True, "chosen": False, "dev": dev, "test": test}
    added = [rows[0] | alone | {"dev flops": 1, "test flops": 1}]
    if worth:
        point = {"dev flops": flops[0], "test flops": flops[1], "dev": worth[0], "test": worth[1]}
        added.append(added[0] | point | {"schedule": schedule})
    for row in [*rows, *added]:
        row |= {f"{name} for fused": value for name, value in (SHORTFALLS | told).items()}
        row["chosen for fused"] = row["schedule"] == schedule and row["fused"]
    return added


@pytest.fixture
def grid(tmp_path):
    """The folder of tables of some arms; each data set begins with its first stage."""

    def grid(*arms: dict[str, list[dict]], first_stage: float = 0.9) -> Path:
        quality = {"nDCG@10": 0.401, "nDCG@10 low": 0.3, "nDCG@10 high": 0.5, "dev nDCG@10": first_stage}
        first = {"start_layer": 0, "exit": "first_stage", "layer": 0} | quality
        layers = {}
        for arm in arms:
            dataset = arm["layers"][0]["dataset"]
            layers.setdefault(dataset, [{"dataset": dataset} | first]).extend(arm["layers"])
        tables = {"layers": [row for of_dataset in layers.values() for row in of_dataset]}
        for name in ("cost", "cascades", "comparisons"):
            tables[name] = [row for arm in arms for row in arm[name]]
        for name, table in tables.items():
            pd.DataFrame(table).to_csv(tmp_path / f"{name}.csv", index=False)
        return tmp_path

    return grid


def section(advice: str, title: str, dataset: str = "d") -> str:
    """Return the text under the headline that begins like this."""
    of_dataset = advice.partition(f"\n## {dataset}\n")[2].partition("\n## ")[0]
    return of_dataset.partition(f"### {title}")[2].partition("\n\n")[2].partition("\n\n### ")[0].strip()


# --- The best model ---


@pytest.mark.parametrize("order", [("one", "two"), ("two", "one")])
def test_best_model_is_chosen_on_dev_not_on_test(grid, order):
    arms = {"one": rows("one", ONE), "two": rows("two", TWO)}
    text = advice_text(grid(*(arms[name] for name in order)))
    assert (
        "The best model on dev is **one, start 2, v**: its deepest exit, layer 4, has nDCG@10 0.500 there and "
        "0.450 [0.400, 0.500] on test (first stage: 0.401)."
    ) in text


def test_best_model_has_the_best_deepest_exit(grid):
    peak = {3: (0.9, 0.9), 4: (0.4, 0.4)}
    cascade = rows("two", TWO, schedule="3:2 4", worth=(0.9, 0.9))
    text = advice_text(grid(rows("two", peak, dataset="e"), rows("one", dataset="e"), cascade, rows("one")))
    assert text.count("The best model on dev is **one, start 2, v**") == 2


def test_best_model_may_be_the_best_by_its_fused_scores(grid):
    gains_most = TWO | {4: (0.49, 0.44)}
    fused = {4: (0.54, 0.48)}
    text = advice_text(grid(rows("one", fused=FUSED), rows("two", gains_most, fused=fused)))
    assert (
        "The best model on dev is **two, start 3, v**: its deepest exit, layer 4, has nDCG@10 0.490" in text
    )


def test_model_name_has_the_training_data_of_a_transferred_model(grid):
    assert "**one, start 2, v trained on big**" in advice_text(grid(rows(trained_on="big")))


def test_each_data_set_has_a_section(grid):
    elsewhere = rows("two", TWO, as_good={3: (True, True)}, dataset="other")
    text = advice_text(grid(rows(as_good={2: (True, True)}), elsewhere))
    assert text.startswith("# Which layer to deploy\n\nEverything is chosen on dev; ")
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## d", "## other"]
    assert section(text, "The shallowest exit").startswith("**Layer 2**")
    assert section(text, "The shallowest exit", "other").startswith("**Layer 3**")
    assert "of one" not in section(text, "The best within", "other")


def test_data_set_without_dev_queries_is_advised_by_dev_of_another(grid):
    arms = [
        of_arm
        for name, quality in (("one", ONE), ("two", TWO))
        for of_arm in (
            rows(name, quality, {3: (True, True)}, "2:3 4"),
            rows(name, quality, {3: (True, True)}, "2:3 4", dataset="small", trained_on="d"),
        )
    ]
    tables = grid(*arms)
    whole = advice_text(tables)
    for name, column in (("layers", "dev nDCG@10"), ("comparisons", None), ("cascades", "chosen on")):
        table = pd.read_csv(tables / f"{name}.csv", dtype={"schedule": str, "deepest": str})
        of_small = table["dataset"] == "small"
        if column is None:
            table = table[~of_small | (table["split"] == "test")]
        else:
            table.loc[of_small, column] = {"layers": None, "cascades": "d"}[name]
        table.to_csv(tables / f"{name}.csv", index=False)
    note = "small has no dev queries: dev is that of d, ranked by the same models.\n\n"
    text = advice_text(tables)
    assert text.count(note) == 1
    assert note in text.split("## small")[1]
    assert text.replace(note, "") == whole


# --- The shallowest exit that is as good ---


@pytest.mark.parametrize(
    ("confirmed", "verdict"), [(True, "Test confirms it:"), (False, "Test does not confirm it:")]
)
def test_shallowest_exit_is_chosen_on_dev_and_reported_on_test(grid, confirmed, verdict):
    text = advice_text(grid(rows(as_good={2: (False, True), 3: (True, confirmed)}), rows("two", TWO)))
    shallowest = section(text, "The shallowest exit as good as layer 4")
    assert shallowest.startswith(
        "**Layer 3**. Dev: -0.010 [-0.030, +0.010] to layer 4, so it loses less than 0.02"
    )
    assert "(one-sided p = 0.012 by Holm's method over the 3 exits and cascades of all models" in shallowest
    assert f"{verdict} -0.010 [-0.030, +0.010], p = {0.012 if confirmed else 0.8:.3f}." in shallowest
    assert shallowest.endswith("It takes 75% of the deepest exit's FLOPs and 75% of its time, 14 ms a list.")


def test_shallowest_of_several_noninferior_exits_is_chosen(grid):
    text = advice_text(grid(rows(as_good={2: (True, True), 3: (True, True)})))
    assert section(text, "The shallowest exit").startswith("**Layer 2**")


def test_cascade_is_not_the_shallowest_exit(grid):
    text = advice_text(grid(rows(schedule="2:3 4", as_good={"cascade": (True, True)})))
    assert section(text, "The shallowest exit").startswith("**Layer 4** itself")


def test_deepest_exit_is_chosen_if_no_other_is_noninferior_on_dev(grid):
    text = advice_text(grid(rows(as_good={3: (False, True)})))
    assert section(text, "The shallowest exit") == (
        "**Layer 4** itself: on dev, no shallower exit is shown to lose less than 0.02 nDCG@10 (the closest, layer 2: "
        "-0.200 [-0.030, +0.010])."
    )


def test_model_with_one_exit_has_no_shallower_exit(grid):
    text = advice_text(grid(rows(quality={4: (0.5, 0.5)})))
    assert section(text, "The shallowest exit").startswith("**Layer 4** itself")
    assert "closest" not in text


def test_price_without_times_is_in_flops_only(grid):
    text = advice_text(grid(rows(as_good={3: (True, True)}, timed=None)))
    assert section(text, "The shallowest exit").endswith("It takes 75% of the deepest exit's FLOPs.")


# --- Within a budget ---


@pytest.mark.parametrize(
    ("budget_ms", "best"),
    [
        (10, "layer 2 of one, start 2, v"),
        (11.9, "layer 2 of one, start 2, v"),
        (12, "cascade `2:3 4` of one, start 2, v"),
        (19, "cascade `2:3 4` of one, start 2, v"),  # layer 3 is slower, and worse on dev
        (1000, FOUR_OF_ONE),
    ],
)
def test_choice_within_budget_is_the_best_on_dev(grid, budget_ms, best):
    # two is as fast, and far better on test alone
    text = advice_text(grid(rows(schedule="2:3 4"), rows("two", TWO)), budget_ms)
    assert section(text, "The best within").startswith(
        f"**{best}**: 95 of 100 lists of 10 candidates on a lathe"
    )
    assert f"Of all within {budget_ms:,g} ms it ranks dev best" in section(text, "The best within")


def test_choice_within_budget_may_be_another_model(grid):
    faster = rows("two", {3: (0.20, 0.2), 4: (0.45, 0.2)}, timed=0.5)
    within = section(advice_text(grid(rows(), faster), 11), "The best within")
    assert within.startswith("**layer 4 of two, start 3, v**")
    assert within.endswith("nDCG@10 0.450; on test it has 0.200 [0.150, 0.250].")


def test_times_are_scaled_to_the_number_of_candidates(grid):
    folder = grid(rows())
    # 25 candidates: 25, 37.5 and 50 ms
    within = section(advice_text(folder, 49, 25), "The best within")
    assert within.startswith(
        "**layer 3 of one, start 2, v**: 95 of 100 lists of 25 candidates on a lathe (scaled from 10) take at most "
        "37.5 [37, 38] ms."
    )
    assert section(advice_text(folder, 50, 25), "The best within").startswith(f"**{FOUR_OF_ONE}**")
    assert "scaled" not in advice_text(folder, 50, 10)


def test_too_small_budget_reports_the_fastest_exit(grid):
    assert section(advice_text(grid(rows()), 9.9), "The best within") == (
        "Nothing: the fastest, layer 2 of one, start 2, v, takes 10 [9.8, 10.2] ms for lists of 10 candidates on a "
        "lathe."
    )


def test_without_budget_all_choices_are_listed(grid):
    text = section(advice_text(grid(rows(schedule="2:3 4"), rows("two", TWO))), "The best within")
    assert [line for line in text.splitlines() if line.startswith("|")] == [
        "| from ms | take | ms | dev | test |",
        "|--:|:--|--:|--:|--:|",
        "| 10 | layer 2 of one, start 2, v | 10 [9.8, 10.2] | 0.300 | 0.350 [0.300, 0.400] |",
        "| 12 | cascade `2:3 4` of one, start 2, v | 12 [11.8, 12.2] | 0.495 | 0.448 [0.398, 0.498] |",
        f"| 20 | {FOUR_OF_ONE} | 20 [19.8, 20.2] | 0.500 | 0.450 [0.400, 0.500] |",
    ]
    assert "do not tell" not in text


def cheap_rows(spread: float) -> dict[str, list[dict]]:
    """Return rows of arm two, whose layer 3 takes 16 ms and half the FLOPs of one's, which takes 15 ms."""
    cheap = rows("two", {3: (0.49, 0.44), 4: (0.50, 0.45)}, timed=16 / 15, spread=spread)
    for row in cheap["layers"]:
        row["gflops per pair"] /= 2
    return cheap


def test_of_times_that_do_not_differ_the_one_with_fewer_flops_is_chosen(grid):
    folder = grid(rows(spread=0.1), cheap_rows(spread=0.1))
    within = section(advice_text(folder, 15.5), "The best within")
    assert within.startswith(
        "**layer 3 of two, start 3, v**: 95 of 100 lists of 10 candidates on a lathe take at most 16 [14, 18] ms."
    )
    assert "The interval of its time reaches above 15.5 ms." in within
    assert (
        "The times do not tell layer 3 of two, start 3, v from layer 3 of one, start 2, v (15 [13, 17] ms)"
        in within
    )
    table = section(advice_text(folder), "The best within")
    assert "| 15 | layer 3 of two, start 3, v | 16 [14, 18] | 0.490 | 0.440 [0.390, 0.490] |" in table
    assert "| layer 3 of one" not in table
    assert "the choice with fewer FLOPs counts as no slower" in table
    assert (
        "- The times do not tell layer 3 of two, start 3, v from layer 3 of one, start 2, v (15 [13, 17] ms)"
        in table
    )


def test_of_times_that_differ_the_faster_is_chosen_whatever_its_flops(grid):
    within = section(advice_text(grid(rows(), cheap_rows(spread=0.01)), 15.5), "The best within")
    assert within.startswith("**layer 3 of one, start 2, v**")
    assert "do not tell" not in within


def test_worse_exit_with_fewer_flops_is_not_advised_where_it_is_not_faster(grid, monkeypatch):
    """Layer 3 seems to take 20.5 ms, layer 4, which is better, 20."""
    monkeypatch.setitem(MS, 3, 20.5)
    text = section(advice_text(grid(rows(spread=0.1))), "The best within")
    choices = [line.split(" | ")[1] for line in text.splitlines() if line.startswith("| ")]
    assert choices == ["take", "layer 2 of one, start 2, v", FOUR_OF_ONE]


def test_price_says_where_an_exit_is_not_shown_to_be_faster_than_the_deepest(grid, monkeypatch):
    monkeypatch.setitem(MS, 3, 19.0)
    text = advice_text(grid(rows(as_good={3: (True, True)}, spread=0.1)))
    assert section(text, "The shallowest exit").endswith(
        "95% of its time, 18 ms a list, which the measurement does not tell from the deepest exit's."
    )


def test_budget_without_times_is_refused(grid):
    folder = grid(rows(timed=None))
    with pytest.raises(BadInput, match=r"nothing was timed in this grid; set `cost: \{queries: 20\}`"):
        advice_text(folder, 100)
    assert section(advice_text(folder), "The best within").startswith("Nothing was timed")


# --- The cascade ---


@pytest.mark.parametrize(
    ("on_test", "flops", "verdict"),
    [
        (0.448, 0.45, "It holds that on test: 99.6% (0.448 of 0.450) at 45%; 99% at half the FLOPs: yes."),
        (0.448, 0.55, "It holds that on test: 99.6% (0.448 of 0.450) at 55%; 99% at half the FLOPs: no."),
        (
            0.430,
            0.45,
            "It does not hold that on test: 95.6% (0.430 of 0.450) at 45%; 99% at half the FLOPs: no.",
        ),
    ],
)
def test_cascade_is_reported_on_test(grid, on_test, flops, verdict):
    text = advice_text(grid(rows(schedule="2:3 4", worth=(0.495, on_test), flops=(0.4, flops))))
    cascade = section(text, "The best cascade")
    assert cascade.startswith(
        "**`2:3 4`**: layer 2 keeps the best 3, layer 4 ranks them. On dev it is the cheapest that keeps 99% of layer "
        "4's nDCG@10: 99.0% (0.495 of 0.500) at 40% of its FLOPs."
    )
    assert verdict in cascade
    assert cascade.endswith(
        f"It takes {flops:.0%} of the deepest exit's FLOPs and 60% of its time, 11 ms a list."
    )


def test_loss_in_int8_is_told_where_scores_are_int8(grid, tmp_path):
    tables = tmp_path / "results/tables"
    grid(rows())
    tables.mkdir(parents=True)
    for file in tmp_path.glob("*.csv"):
        file.rename(tables / file.name)
    assert "int8" not in advice_text(tables)
    compared = {"exit": "layer_4", "float32": 0.5, "difference": -0.004, "low": -0.01, "high": 0.002}
    record = {"precision": "int8", "measure": "nDCG@10", "dev queries": 80, "exits": [compared]}
    write_json(tmp_path / "results/cells/d/one/start2/v/precision/d.json", record)
    text = section(advice_text(tables), "What int8 loses")
    assert "on 80 dev queries" in text
    assert "| layer 4 | 0.500 | -0.004 [-0.010, +0.002] |" in advice_text(tables)


def test_no_cascade_if_dev_chooses_the_deepest_exit(grid):
    text = section(advice_text(grid(rows())), "The best cascade")
    assert text == "None: on dev no cascade keeps 99% of layer 4's nDCG@10 for less."


def test_cascade_is_of_the_best_model(grid):
    text = advice_text(grid(rows("two", TWO, schedule="3:9 4"), rows(schedule="2:3 4")))
    assert section(text, "The best cascade").startswith("**`2:3 4`**")


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ("2:20 4:10 6", "layer 2 keeps the best 20, layer 4 keeps the best 10, layer 6 ranks them"),
        ("0:30 6", "the first stage keeps the best 30, layer 6 ranks them"),
        ("3:5 4", "layer 3 keeps the best 5, layer 4 ranks them"),
        ("6", "layer 6 ranks all"),
        ("3/4 6", "after layer 3 each 4 passage tokens become one, layer 6 ranks all"),
        (
            "2/2:20 6",
            "layer 2 keeps the best 20, after layer 2 each 2 passage tokens become one, layer 6 ranks them",
        ),
    ],
)
def test_describe_schedule(schedule, words):
    assert describe_schedule(schedule) == words


@pytest.mark.parametrize(
    ("schedule", "name"),
    [("4", "layer 4"), ("3/2 4", "layer 4, compressed 3/2"), ("3/2:5 4", "cascade `3/2:5 4`")],
)
def test_a_schedule_is_named_with_its_compression(schedule, name):
    assert name_schedule(schedule, False) == name
    assert name_schedule(schedule, True) == f"{name}, fused"


# --- Fused exits and cascades ---

FUSED = {2: (0.45, 0.40), 3: (0.51, 0.46), 4: (0.53, 0.47)}
BOUND = {"confidence": 0.9, "dev queries": 80, "queries needed": None}
BOUND |= {"expected shortfall": 0.002, "shortfall bound": 0.0094}
FELL_BACK = BOUND | {"expected shortfall": None, "shortfall bound": None}


SHORTFALLS = {"expected shortfall": 0.001, "shortfall bound": 0.0071, "queries needed": None}
CHEAP = {"schedule": "0:5 2:3 4", "worth": (0.495, 0.448), "flops": (0.3, 0.29), "bound": BOUND}
KEEPS_FUSED = {"schedule": "0:9 4", "worth": (0.529, 0.468), "flops": (0.6, 0.61)}


def recommended(advice: str) -> str:
    """Return the paragraph that a data set begins with."""
    return advice.partition("\n## d\n\n")[2].partition("\n\n")[0]


def test_recommendation_begins_with_the_fused_cascade(grid):
    folder = grid(rows(schedule="0:5 2:3 4", fused=FUSED, bound=BOUND, flops=(0.3, 0.29)), first_stage=0.49)
    assert recommended(advice_text(folder)) == (
        "**d: rerank with cascade `0:5 2:3 4`, fused, of one, start 2, v**: 29% of the FLOPs of layer 4, the deepest, "
        "at 99.6% of its nDCG@10 on test (dev, out of fold: 99.0% at 30%; with 90% confidence it loses at most 0.9%)."
    )
    cascade = section(advice_text(folder), "The best cascade")
    assert cascade.startswith(
        "**`0:5 2:3 4`, fused**: the first stage keeps the best 5, layer 2 keeps the best 3, layer 4 ranks them. On "
        "dev it is the cheapest that keeps 99% of layer 4's nDCG@10 with 90% confidence: 99.0% (0.495 of 0.500, out of "
        "fold) at 30% of its FLOPs. It is expected to lose 0.2% on as many new queries; with 90% confidence it loses "
        "at most 0.9%."
    )
    assert "It holds that on test: 99.6% (0.448 of 0.450) at 29%" in cascade
    assert cascade.endswith("are of no use with another (`lwr rerank --fused`).")


def test_where_the_first_choice_ranks_worse_than_fused_the_second_is_recommended(grid):
    text = advice_text(grid(rows(**CHEAP, fused=FUSED, second=KEEPS_FUSED), first_stage=0.49))
    assert recommended(text) == (
        "**d: rerank with cascade `0:9 4`, fused, of one, start 2, v**: 61% of the FLOPs of layer 4, the deepest, at "
        "99.6% of its fused nDCG@10 on test (dev, out of fold: 99.8% at 60%; with 90% confidence it loses at most "
        "0.7%). Cheaper: cascade `0:5 2:3 4`, fused, at 29% of the FLOPs keeps 99.6% of layer 4's own nDCG@10 on test."
    )
    second, first = section(text, "The best cascade").split("\n\n")
    assert second.startswith(
        "**`0:9 4`, fused**: the first stage keeps the best 9, layer 4 ranks them. On dev it is the cheapest that "
        "keeps 99% of fused layer 4's nDCG@10 with 90% confidence: 99.8% (0.529 of 0.530, out of fold) at 60% of "
        "its FLOPs."
    )
    assert "It takes 61% of the deepest exit's FLOPs" in second
    assert first.startswith("**`0:5 2:3 4`, fused**: the first stage keeps")
    assert "keeps 99% of layer 4's nDCG@10 with" in first


def test_cheap_alternative_that_the_first_stage_equals_says_so(grid):
    text = recommended(advice_text(grid(rows(**CHEAP, fused=FUSED, second=KEEPS_FUSED), first_stage=0.495)))
    assert text.endswith("of layer 4's own nDCG@10 on test, no better than the first stage alone on dev.")


@pytest.mark.parametrize("worth", [(0.511, 0.448), (0.509, 0.448)])
def test_first_choice_is_recommended_within_the_margin(grid, worth):
    """The deepest fused exit has 0.530 on dev, and the margin is 0.02."""
    text = advice_text(
        grid(rows(**CHEAP | {"worth": worth}, fused=FUSED, second=KEEPS_FUSED), first_stage=0.49)
    )
    first, second = ("`0:5 2:3 4`", "`0:9 4`") if worth[0] > 0.51 else ("`0:9 4`", "`0:5 2:3 4`")
    assert f"rerank with cascade {first}, fused" in recommended(text)
    told = section(text, "The best cascade")
    assert told.index(first) < told.index(second)
    assert ("Cheaper:" in recommended(text)) == (worth[0] < 0.51)


@pytest.mark.parametrize(
    ("second", "is_first"),
    [
        ({"worth": (0.529, 0.468), "flops": (0.2, 0.61)}, True),  # cheaper on dev and better
        ({"worth": (0.52, 0.468), "flops": (0.3, 0.61)}, True),  # neither costs more nor ranks worse
        ({"worth": (0.529, 0.468), "flops": (0.31, 0.1)}, False),  # dearer on dev
        ({"worth": (0.519, 0.468), "flops": (0.2, 0.61)}, False),  # worse
    ],
)
def test_second_choice_is_recommended_where_the_first_costs_no_less_and_ranks_no_better(
    grid, second, is_first
):
    within_margin = CHEAP | {"worth": (0.52, 0.448)}
    folder = grid(rows(**within_margin, fused=FUSED, second=KEEPS_FUSED | second), first_stage=0.49)
    expected = "`0:9 4`" if is_first else "`0:5 2:3 4`"
    assert f"rerank with cascade {expected}, fused" in recommended(advice_text(folder))


def test_choices_that_agree_are_told_once(grid):
    worth = (0.528, 0.47)
    agree = rows(**CHEAP | {"worth": worth}, fused=FUSED, second={"schedule": "0:5 2:3 4"})
    alone = rows(**CHEAP | {"worth": worth}, fused=FUSED)
    texts = [advice_text(grid(arm, first_stage=0.49)) for arm in (agree, alone)]
    assert texts[0] == texts[1]


def test_too_few_queries_for_the_second_choice_recommend_the_deepest_fused_exit(grid):
    few = {"schedule": "4", "shortfall bound": None, "expected shortfall": None, "queries needed": 500}
    text = advice_text(grid(rows(**CHEAP, fused=FUSED, second=few), first_stage=0.49))
    assert recommended(text).startswith(
        "**d: rerank with layer 4, fused, the deepest, of one, start 2, v**: 80 dev queries are too few to show with "
        "90% confidence that a cascade keeps 99% of fused layer 4's nDCG@10; at least about 500 are needed. Cheaper: "
        "cascade `0:5 2:3 4`, fused, at 29%"
    )


def test_second_choice_is_taken_within_a_budget(grid):
    text = section(advice_text(grid(rows(**CHEAP, fused=FUSED, second=KEEPS_FUSED))), "The best within")
    assert "cascade `0:9 4`, fused, of one, start 2, v" in text


def test_cascade_that_gains_says_so(grid):
    bound = BOUND | {"expected shortfall": -0.021, "shortfall bound": -0.001}
    text = advice_text(grid(rows(schedule="2:3 4", fused=FUSED, bound=bound)))
    assert (
        "It is expected to gain 2.1% on as many new queries; with 90% confidence it gains at least 0.1%."
        in text
    )


def test_recommendation_says_how_many_dev_queries_a_cascade_needs(grid):
    few = rows(fused=FUSED, bound=FELL_BACK | {"queries needed": 240})
    text = advice_text(grid(few, first_stage=0.4))
    why = (
        "80 dev queries are too few to show with 90% confidence that a cascade keeps 99% of layer 4's nDCG@10; at "
        "least about 240 are needed."
    )
    assert recommended(text) == f"**d: rerank with layer 4, the deepest, of one, start 2, v**: {why}"
    assert section(text, "The best cascade") == f"None: {why}"


def test_recommendation_says_that_no_cascade_keeps_enough(grid):
    text = advice_text(grid(rows(fused=FUSED, bound=FELL_BACK), first_stage=0.4))
    assert recommended(text).endswith(": on the 80 dev queries no cascade keeps 99% of layer 4's nDCG@10.")


def test_fused_deepest_exit_may_be_chosen(grid):
    text = advice_text(grid(rows(schedule="4", worth=(0.53, 0.47), fused=FUSED, bound=BOUND, flops=(1, 1))))
    assert recommended(text).startswith(
        "**d: rerank with layer 4, fused, of one, start 2, v**: 100% of the FLOPs"
    )
    assert "It takes 100% of the deepest exit's FLOPs" in section(text, "The best cascade")
    assert "| layer 4, fused, of one, start 2, v |" in section(text, "The best within")


def test_recommendation_without_fused_scores_has_no_bound(grid):
    assert recommended(advice_text(grid(rows(schedule="2:3 4"), first_stage=0.4))) == (
        "**d: rerank with cascade `2:3 4`, of one, start 2, v**: 45% of the FLOPs of layer 4, the deepest, at 99.6% of "
        "its nDCG@10 on test (dev: 99.0% at 40%)."
    )
    assert recommended(advice_text(grid(rows(), first_stage=0.4))) == (
        "**d: rerank with layer 4, the deepest, of one, start 2, v**: on dev no cascade keeps 99% of layer 4's nDCG@10 "
        "for less."
    )


@pytest.mark.parametrize(
    ("first_stage", "fused", "warning"),
    [
        (0.494, None, ""),
        (0.495, None, "and does not rank better. Layer 4 has 0.500 on dev and 0.450 [0.400, 0.500] on test."),
        (
            0.495,
            FUSED,
            "and does not rank better. Layer 4, fused, has 0.530 on dev and 0.470 [0.420, 0.520] on test.",
        ),
        (0.500, None, "The first stage alone ranks dev no worse (0.500): reranking may not pay."),
    ],
)
def test_recommendation_warns_if_the_first_stage_alone_is_no_worse_on_dev(grid, first_stage, fused, warning):
    text = recommended(advice_text(grid(rows(schedule="2:3 4", fused=fused), first_stage=first_stage)))
    assert text.endswith(warning)
    assert ("The first stage alone ranks dev no worse" in text) == bool(warning)


def test_best_model_and_its_deepest_exit_are_told_plain_and_fused(grid):
    text = advice_text(grid(rows("two", TWO, fused={4: (0.52, 0.9)}), rows(fused=FUSED)))
    assert (
        "The best model on dev is **one, start 2, v**: its deepest exit, layer 4, has nDCG@10 0.500 there and 0.450 "
        "[0.400, 0.500] on test; fused, at the same cost, 0.530 and 0.470 [0.420, 0.520] (first stage: 0.401)."
    ) in text


def test_shallowest_exit_may_be_fused(grid):
    good = {"layer_2_fused": (True, False), 3: (True, True), "layer_4_fused": (True, True)}
    shallowest = section(advice_text(grid(rows(fused=FUSED, as_good=good))), "The shallowest exit as good")
    assert shallowest.startswith("**Layer 2, fused**. Dev: -0.050")
    assert "Test does not confirm it" in shallowest
    assert shallowest.endswith("It takes 50% of the deepest exit's FLOPs and 50% of its time, 9 ms a list.")


def test_of_a_layer_alone_and_fused_the_better_is_the_shallowest(grid):
    good = {3: (True, True), "layer_3_fused": (True, True)}
    text = advice_text(grid(rows(fused=FUSED, as_good=good)))
    assert section(text, "The shallowest exit").startswith("**Layer 3, fused**")
    worse = FUSED | {3: (0.48, 0.4)}
    text = advice_text(grid(rows(fused=worse, as_good=good)))
    assert section(text, "The shallowest exit").startswith("**Layer 3**")


def test_fused_deepest_exit_is_not_shallower(grid):
    text = advice_text(grid(rows(fused=FUSED, as_good={"layer_4_fused": (True, True)})))
    assert section(text, "The shallowest exit").startswith("**Layer 4** itself: on dev, no shallower exit")


def test_fused_exits_are_taken_within_a_budget(grid):
    text = section(advice_text(grid(rows(fused=FUSED))), "The best within")
    taken = [line.split(" | ")[1] for line in text.splitlines() if " of one" in line]
    assert taken == [f"layer {layer}, fused, of one, start 2, v" for layer in (2, 3, 4)]
    chosen = section(advice_text(grid(rows(fused=FUSED)), 19), "The best within")
    assert chosen.startswith("**layer 3, fused, of one, start 2, v**: 95 of 100 lists")


def test_comparisons_of_plain_exits_are_without_fused_ones(grid):
    evidence = read_evidence(grid(rows(fused=FUSED)))["d"]
    arm = best_arm(evidence)
    assert list(comparisons_to_deepest(evidence, arm, "dev").index) == ["layer_2", "layer_3"]
    assert list(comparisons_to_deepest(evidence, arm, "dev", fused=True).index) == [
        "layer_2",
        "layer_2_fused",
        "layer_3",
        "layer_3_fused",
        "layer_4_fused",
    ]


# --- The threshold ---

SCHEDULE = "0:3 2:2 4"


@pytest.fixture
def scored(grid, tmp_path):
    """A function that writes a results folder with scores in which the best of 5 candidates is relevant."""

    def scored(queries: int, fused: bool = False, seeds: tuple[int, ...] = (1,), **of_row) -> Path:
        tree = ResultsTree(tmp_path / "results")
        if fused:
            of_row |= {"fused": FUSED, "bound": BOUND}
        shutil.copytree(grid(rows(schedule=SCHEDULE, **of_row)), tree.tables, ignore=lambda *_: ["results"])
        names = {split: [f"{split}{i}" for i in range(queries)] for split in ("dev", "test")}
        docs = [f"d{i}" for i in range(5)]
        qrels = {split: {query: {"d0": 1} for query in of_split} for split, of_split in names.items()}
        write_collection(
            tree.collection("d"),
            [Passage(doc, "", doc) for doc in docs],
            {query: query for of_split in names.values() for query in of_split},
            qrels,
        )
        for seed in seeds:
            cell = Cell("d", "one", 2, "v", seed)
            paths = {split: tree.scores(cell, "d", split) for split in names}
            for split, of_split in names.items():
                table = pd.DataFrame([(q, d) for q in of_split for d in docs], columns=["query_id", "doc_id"])
                exits = {
                    f"layer_{k}": np.float32(np.tile([2.5 * seed, 1, 0, 0, -1], queries)) for k in (2, 3, 4)
                }
                paths[split].parent.mkdir(parents=True, exist_ok=True)
                table.assign(tokens=9, first_stage=exits["layer_4"], **exits).to_parquet(paths[split])
            fusion = tree.fusion(cell.arm, "d") if fused else None
            if fusion is not None and not fusion.exists():
                fuse([paths["dev"]], tree.collection("d"), FusionConfig(), "nDCG@10", {}, fusion)
            about = dict(zip(ARM_COLUMNS, ARMS["one"], strict=True)) | {"seed": seed}
            calibrate(*paths.values(), tree.collection("d"), about, tree.calibration(cell, "d"), fusion)
        return tree.tables

    return scored


def test_threshold_of_a_precision_is_told_for_each_seed_with_its_result_on_test(scored):
    tables = scored(60, seeds=(1, 2))
    told = section(advice_text(tables, precision=0.9), "The lowest threshold with a precision of 0.9")
    assert told.startswith(
        "Of the candidates of all dev queries that score at least this at layer 4, the share"
    )
    assert "also those that `0:3 2:2 4` drops before layer 4.\n\n| seed |" in told
    found = re.findall(r"^\| ([12]) \| (\S+) \| (\S+) \| (.*)\|$", told, re.MULTILINE)
    assert [(seed, score) for seed, score, _, _ in found] == [("1", "2.5"), ("2", "5")]
    for _, _, probability, rest in found:
        assert float(probability) > 0.8
        assert rest == "1.000 [0.940, 1.000] | 100% | 1.000 [0.940, 1.000] | 100% "


def test_fused_exit_has_a_threshold_of_fused_scores(scored):
    text = advice_text(scored(60, fused=True), precision=0.9)
    assert "at layer 4, fused, the share" in text
    assert re.search(r"^\| 1 \| \S+ \| \S+ \| 1\.000 .* \| 100% \| 1\.000 ", text, re.MULTILINE)


def test_precision_that_dev_does_not_show_has_no_threshold(scored):
    tables = scored(20)
    text = advice_text(tables, precision=0.9)
    assert (
        "Seed 1: no threshold on dev has this precision; the best 20 candidates, from score 2.5 on, come closest with "
        "1.000 [0.832, 1.000]." in text
    )
    assert "| seed |" not in text
    assert "| seed |" in advice_text(tables, precision=0.8)
    assert "threshold" not in advice_text(tables)


@pytest.mark.parametrize("precision", [0.0, -1.0, 1.5, float("nan")])
def test_precision_that_is_no_share_is_refused(grid, precision):
    with pytest.raises(BadInput, match=r"--precision: .*; give a share above 0"):
        advice_text(grid(rows()), precision=precision)


def test_threshold_without_the_scores_of_the_grid_is_refused(scored):
    tables = scored(10)
    shutil.rmtree(tables.parent / "cells")
    with pytest.raises(BadInput, match=r"cells/d/one/start2/v: no cell of the recommended model"):
        advice_text(tables, precision=0.9)


# --- Files ---


@pytest.mark.parametrize("name", ["layers", "cost", "cascades", "comparisons"])
def test_missing_table_is_named(grid, name):
    folder = grid(rows())
    (folder / f"{name}.csv").unlink()
    with pytest.raises(BadInput, match=rf"{name}\.csv: no such file; run the workflow"):
        advice_text(folder)


def test_measure_and_margin_are_read_from_comparisons(grid):
    evidence = read_evidence(grid(rows()))["d"]
    assert (evidence.primary, evidence.margin) == ("nDCG@10", 0.02)


def test_advise_writes_advice_text(grid, tmp_path):
    folder = grid(rows(schedule="2:3 4"))
    advise(folder, tmp_path / "new/recommendation.md", 15, 20)
    assert (tmp_path / "new/recommendation.md").read_text(encoding="utf-8") == advice_text(folder, 15, 20)
    assert advice_text(folder, 15, 20) != advice_text(folder)


def test_a_quality_of_zero_is_kept_by_any_schedule():
    choice = CascadeChoice(
        "cascade", pd.Series({"dev": 0.2, "test": 0.0}), pd.Series({"dev": 0.4, "test": 0.0})
    )
    assert (choice.kept("dev"), choice.kept("test")) == (0.5, 1)
