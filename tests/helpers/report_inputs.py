"""Synthetic inputs of figures and report: tables, values per query, training logs and provenance."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from lwr.common.exits import ARM_COLUMNS, CASCADE, FIRST_STAGE, Cell, exit_name, fused_name, is_fused
from lwr.common.json_lines import write_json, write_jsonl
from lwr.common.results_tree import ResultsTree
from lwr.evaluation.calibrate import METHODS
from lwr.reporting.tables import build_calibration_table

PRIMARY = "nDCG@10"
LAST = 6
FIRST_STAGE_QUALITY = 0.64
BOUND = {"confidence": 0.9, "expected shortfall": 0.002, "shortfall bound": 0.009}
BOUND |= {"dev queries": 80, "queries needed": None}


@dataclass(frozen=True)
class Inputs:
    """The folders and files that `figures` and `report` read."""

    tables: Path
    measures: list[Path]
    models: list[Path]
    calibrations: list[Path]


def arm(
    dataset: str = "scifact",
    start: int = 2,
    variant: str = "default",
    base: str = "minilm",
    trained: str = "",
) -> tuple:
    """Return the values of ARM_COLUMNS."""
    return (dataset, trained or dataset, base, start, variant)


def nine_arms() -> list[tuple]:
    variants = ("default", "no-distillation", "weighted")
    return [arm(start=start, variant=variant) for start, variant in product((2, 4, 6), variants)]


def make(
    root: Path,
    arms: list[tuple] | None = None,
    seeds: int = 1,
    cascade: bool = True,
    cost: bool = True,
    queries: int = 40,
    fused: bool = False,
) -> Inputs:
    """Write all inputs under `root`; an arm that starts at LAST has one exit, and no cascade.

    Args:
        arms: as `arm` returns them; None: two.
        cascade: whether arms of three exits or more have one.
        cost: whether times were measured.
        fused: whether there are fused exits; cascades are fused, too, then.
    """
    arms = arms or [arm(), arm(start=4)]
    tree = ResultsTree(root)
    rng = np.random.default_rng(0)
    layers, costs, cascades, files, models, calibrations = [], [], [], [], [], []
    for dataset in dict.fromkeys(values[0] for values in arms):
        layers.append(_layers_row((dataset, "", "", 0, ""), FIRST_STAGE, 0, FIRST_STAGE_QUALITY, seeds=1))
    for number, this in enumerate(arms):
        dataset, trained_on, base_model, start, variant = this
        exits = range(start, LAST + 1)
        for layer in exits:
            value = FIRST_STAGE_QUALITY + 0.012 * (layer - 2.4) - 0.003 * number + 0.002 * rng.normal()
            gained = (value - FIRST_STAGE_QUALITY) / (0.012 * 3.6)
            shares = {"share of gain": gained, "share of score": value / 0.683, "flops": layer / LAST}
            layers.append(_layers_row(this, exit_name(layer), layer, value, seeds, **shares))
            costs.append(_cost_row(this, exit_name(layer), layer, cost))
            if fused:
                shares |= {"share of gain": gained + 0.2, "share of score": value / 0.683 + 0.01}
                layers.append(_layers_row(this, fused_name(layer), layer, value + 0.009, seeds, **shares))
            if layer in (start, LAST):
                cascades.append(_cascades_row(this, str(layer), layer / LAST, value))
        if cascade and len(exits) > 2:
            schedule = f"{'0:25 ' if fused else ''}{start}:20 {start + 1}:10 {LAST}"
            shares = {"schedule": schedule, "share of gain": 0.98, "share of score": 0.99, "flops": 0.55}
            layers.append(_layers_row(this, CASCADE, LAST, 0.681 - 0.003 * number, seeds, **shares))
            costs.append(_cost_row(this, CASCADE, 0.55 * LAST, cost))
            cascades.append(_cascades_row(this, f"{start}:15 {LAST}", 0.46, 0.672 - 0.003 * number))
            cascades.append(_cascades_row(this, schedule, 0.55, 0.681 - 0.003 * number, chosen=True))
        for seed in range(1, seeds + 1):
            cell = Cell(trained_on, base_model, start, variant, seed)
            files.append(tree.measures(cell, dataset, "test"))
            _write_measures(files[-1], this, seed, queries, rng, fused)
            calibrations.append(tree.calibration(cell, dataset))
            _write_calibration(calibrations[-1], this, seed, fused)
            if tree.model(cell) not in models:
                models.append(tree.model(cell))
                write_jsonl(models[-1] / "training.jsonl", _training_log(exits, rng))
                write_json(models[-1] / "provenance.json", _provenance(cell))
    if fused:
        for row in layers:
            row["fused"] = is_fused(row["exit"]) or row["exit"] == CASCADE
        for row in cascades:
            row |= BOUND | {"fused": ":" in row["schedule"]}
    comparisons = [_comparisons_row(split, this, rng) for split, this in product(("dev", "test"), arms)]
    _write_csv(tree.tables / "layers.csv", layers)
    _write_csv(tree.tables / "cost.csv", costs)
    _write_csv(tree.tables / "cascades.csv", cascades)
    _write_csv(tree.tables / "comparisons.csv", comparisons)
    build_calibration_table(calibrations).to_csv(tree.tables / "calibration.csv", index=False)
    tree.recommendation.write_text(
        "# Recommendation\n\n**Deploy layer 5 of minilm, start 2.** It keeps 97% of the deepest exit's gain.\n\n"
        "| exit | nDCG@10 | FLOPs |\n|:--|--:|--:|\n| layer 5 | 0.672 | 83% |\n| cascade | 0.681 | 55% |\n\n"
        "- nothing <b>bold</b> comes from HTML\n- 300 test queries, 3 seeds\n",
        encoding="utf-8",
    )
    return Inputs(tree.tables, files, models, calibrations)


def _layers_row(
    this: tuple, exit: str, layer: int, value: float, seeds: int, schedule: str = "", **shares
) -> dict:
    several = seeds > 1
    row = dict(zip(ARM_COLUMNS, this, strict=True))
    row |= {"exit": exit, "layer": layer, "schedule": schedule, "seeds": seeds}
    row |= {PRIMARY: value, f"{PRIMARY} sd": 0.004 if several else None}
    row |= {"R@30": 0.81234567890123456, "R@30 sd": 0.001 if several else None}
    row |= {f"{PRIMARY} low": value - 0.02, f"{PRIMARY} high": value + 0.02, "ties": 0.0}
    row |= {"share of score": None, "share of gain": None, "flops": None}
    row |= {"gflops per pair": 1.9 * (shares.get("flops") or 0)}
    return row | shares


def _cost_row(this: tuple, exit: str, depth: float, timed: bool) -> dict:
    times = {"p50 ms": 14.2 + 38.1 * depth, "p95 ms": 16.1 + 45.9 * depth, "pairs per second": 600 / depth}
    row = dict(zip(ARM_COLUMNS, this, strict=True))
    row |= {"exit": exit, "gflops per pair": 0.32 * depth, "parameters": int(12e6 + 1.7e6 * depth)}
    ratio = (14.2 + 38.1 * depth) / (14.2 + 38.1 * LAST)
    times |= {"ratio": ratio, "ratio low": 0.97 * ratio, "ratio high": 1.03 * ratio}
    row |= times if timed else dict.fromkeys(times)
    row["reference"] = f"layer {LAST} of minilm, start 2, default" if timed else None
    row |= {"peak memory MiB": 611.4 if timed else None, "candidates": 30, "queries": 50}
    return row | {"device": "2 x AMD EPYC 7763 64-Core Processor", "precision": "fp32"}


def _cascades_row(this: tuple, schedule: str, flops: float, value: float, chosen: bool = False) -> dict:
    row = dict(zip(ARM_COLUMNS, this, strict=True))
    row |= {"schedule": schedule, "dev flops": flops, "dev": value + 0.004}
    return row | {"test flops": flops + 0.003, "test": value, "chosen": chosen, "front": True}


def _comparisons_row(split: str, this: tuple, rng: np.random.Generator) -> dict:
    difference = -0.01 * rng.random()
    row = {"split": split, "dataset": this[0], "family": "deepest"}
    row |= dict(zip(ARM_COLUMNS[1:], this[1:], strict=True))
    row |= {"exit": "layer_5"}
    row |= {f"versus_{name}": value for name, value in zip(ARM_COLUMNS[2:], this[2:], strict=True)}
    row |= {"versus_exit": "layer_6", "seeds": 3, "queries": 300, "value": 0.672, "versus_value": 0.681}
    row |= {"difference": difference, "low": difference - 0.011, "high": difference + 0.011}
    row |= {"p t": 0.0123456789012345678, "p randomisation": 2e-5 * (1 + round(9 * rng.random()))}
    row |= {"p Holm": 0.04, "effect size": -0.1, "p noninferior": 0.2, "p noninferior Holm": 0.3}
    return row | {"noninferior": False, "wins": 60, "ties": 170, "losses": 70}


def _write_measures(
    path: Path, this: tuple, seed: int, queries: int, rng: np.random.Generator, fused: bool
) -> None:
    exits = [FIRST_STAGE, *(exit_name(layer) for layer in range(this[3], LAST + 1))]
    if fused:
        exits += [fused_name(layer) for layer in range(this[3], LAST + 1)]
    base = rng.beta(2, 1, queries)
    values = [
        np.clip(base + (rng.random(queries) < 0.1 * (LAST + 1 - depth)) * rng.normal(0, 0.1, queries), 0, 1)
        for depth in range(len(exits))
    ]
    rows = [
        (*this, seed, "test", exit, f"q{i}", PRIMARY, value)
        for exit, of_exit in zip(exits, values, strict=True)
        for i, value in enumerate(of_exit)
    ]
    columns = [*ARM_COLUMNS, "seed", "split", "exit", "query_id", "measure", "value"]
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows, columns=columns).to_parquet(path, index=False)


def _write_calibration(path: Path, this: tuple, seed: int, fused: bool) -> None:
    layers = range(this[3], LAST + 1)
    names = [exit_name(layer) for layer in layers] + [fused_name(layer) for layer in layers if fused]
    predicted = (np.arange(10) / 10) ** 2
    on_test = {
        method: {"ece": shift, "brier": 0.05 + shift, "bins": [[p, p * (1 - shift), 60] for p in predicted]}
        for method, shift in zip(METHODS, (0.3, 0.02, 0.01), strict=True)
    }
    record = dict(zip(ARM_COLUMNS, this, strict=True)) | {"seed": seed}
    record |= {"candidates": {"test": 600}, "relevant": {"test": 20}}
    write_json(path, record | {"exits": {name: {"test": on_test} for name in names}})


def _training_log(exits: range, rng: np.random.Generator) -> list[dict]:
    lines = []
    for step in range(10, 1000, 10):
        line = {"loss": 9.0, "step": step, "epoch": step / 500}
        for layer in exits:
            loss = 0.5 + 1.6 * np.exp(-step / 200) - 0.05 * layer + 0.03 * rng.normal()
            line |= {f"contrastive_layer_{layer}": loss, f"distillation_layer_{layer}": 1.0}
        lines.append(line)
    dev = {f"eval_layer_{layer}": 0.6 for layer in exits} | {"eval_mean": 0.6, "step": 500}
    return [*lines, dev, {"train_runtime": 12.0, "step": 1000}]


def _provenance(cell: Cell) -> dict:
    facts = {"cell": dataclasses.asdict(cell)}
    facts |= {"base": {"model": cell.base_model}, "base_fingerprint": "5a" * 32}
    facts |= {"start_layer": cell.start_layer, "seed": cell.seed}
    facts |= {"settings": {"epochs": 1, "learning_rate": 2e-5, "exit_weights": None}}
    facts |= {"groups_sha256": "c0ffee" * 10, "git_commit": "337a3e1c0ffee0ddba11337a3e1c0ffee0ddba11+"}
    facts |= {"lwr": "0.3.0", "packages": {"torch": "2.13.0", "numpy": "2.1.0"}}
    processor = "2 x AMD EPYC 7763 64-Core Processor"
    facts |= {"machine": {"host": "node1", "system": "Linux-6.1", "processor": processor}}
    return facts | {"wall_seconds": 61.5 + cell.seed, "energy_joules": None, "peak_memory_mib": 2048}


def _write_csv(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(path, index=False)
