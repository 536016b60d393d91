"""What the steps before leave to figures and report, made up: tables, values per query, logs, provenance."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from lwr.common.json_lines import write_json, write_jsonl

ARM = ["dataset", "trained_on", "base_model", "start_layer", "variant"]
PRIMARY = "nDCG@10"
LAST = 6
FIRST = 0.64


@dataclass(frozen=True)
class Inputs:
    """Where everything lies."""

    tables: Path
    measures: list[Path]
    training: list[Path]
    provenance: list[Path]


def arm(
    dataset: str = "scifact",
    start: int = 2,
    variant: str = "default",
    base: str = "minilm",
    trained: str = "",
):
    """The values of ARM."""
    return (dataset, trained or dataset, base, start, variant)


def make(
    root: Path,
    arms: list[tuple] | None = None,
    seeds: int = 1,
    cascade: bool = True,
    cost: bool = True,
    queries: int = 40,
) -> Inputs:
    """Write all inputs under `root`; an arm whose start is LAST has one exit, and no cascade."""
    arms = arms or [arm(), arm(start=4)]
    rng = np.random.default_rng(0)
    layers, costs, cascades, files, logs, origins = [], [], [], [], [], []
    for dataset in dict.fromkeys(a[0] for a in arms):
        layers.append(_row((dataset, "", "", 0, ""), "first_stage", 0, FIRST, seeds=1))
    for number, this in enumerate(arms):
        exits = range(this[3], LAST + 1)
        for layer in exits:
            value = FIRST + 0.012 * (layer - 2.4) - 0.003 * number + 0.002 * rng.normal()
            gained = (value - FIRST) / (0.012 * 3.6)
            about = {"share of gain": gained, "share of score": value / 0.683, "flops": layer / LAST}
            layers.append(_row(this, f"layer_{layer}", layer, value, seeds, **about))
            costs.append(_cost(this, f"layer_{layer}", layer, cost))
            if layer in (this[3], LAST):
                cascades.append(_point(this, str(layer), layer / LAST, value))
        if cascade and len(exits) > 2:
            schedule = f"{this[3]}:20 {this[3] + 1}:10 {LAST}"
            about = {"schedule": schedule, "share of gain": 0.98, "share of score": 0.99, "flops": 0.55}
            layers.append(_row(this, "cascade", LAST, 0.681 - 0.003 * number, seeds, **about))
            costs.append(_cost(this, "cascade", 0.55 * LAST, cost))
            cascades.append(_point(this, f"{this[3]}:15 {LAST}", 0.46, 0.672 - 0.003 * number))
            cascades.append(_point(this, schedule, 0.55, 0.681 - 0.003 * number, chosen=True))
        for seed in range(1, seeds + 1):
            dataset, trained, base, start, variant = this
            cell = root / "cells" / trained / base / f"start{start}" / variant / f"seed{seed}"
            files.append(cell / f"{dataset}.parquet")
            _measures(this, seed, queries, rng, files[-1])
            if cell / "model/training.jsonl" not in logs:
                logs.append(cell / "model/training.jsonl")
                write_jsonl(logs[-1], _log(exits, rng))
                origins.append(cell / "model/provenance.json")
                write_json(origins[-1], _origin(base, start, seed))
    tables = root / "tables"
    _csv(tables / "layers.csv", layers)
    _csv(tables / "cost.csv", costs)
    _csv(tables / "cascades.csv", cascades)
    _csv(
        tables / "comparisons.csv",
        [_comparison(*what, rng) for what in product(("dev", "test"), arms)],
    )
    (tables / "recommendation.md").write_text(
        "# Recommendation\n\n**Deploy layer 5 of minilm, start 2.** It keeps 97% of the deepest exit's gain.\n\n"
        "| exit | nDCG@10 | FLOPs |\n|:--|--:|--:|\n| layer 5 | 0.672 | 83% |\n| cascade | 0.681 | 55% |\n\n"
        "- nothing <b>bold</b> comes from HTML\n- 300 test queries, 3 seeds\n",
        encoding="utf-8",
    )
    return Inputs(tables, files, logs, origins)


def _row(this: tuple, exit: str, layer: int, value: float, seeds: int, schedule: str = "", **more) -> dict:
    return {
        **dict(zip(ARM, this, strict=True)),
        **{"exit": exit, "layer": layer, "schedule": schedule, "seeds": seeds},
        **{f"{PRIMARY}": value, f"{PRIMARY} sd": 0.004 if seeds > 1 else None, "R@30": 0.81234567890123456},
        **{
            "R@30 sd": 0.001 if seeds > 1 else None,
            f"{PRIMARY} low": value - 0.02,
            f"{PRIMARY} high": value + 0.02,
        },
        **{"ties": 0.0, "share of score": None, "share of gain": None, "flops": None},
        **{"gflops per pair": 1.9 * (more.get("flops") or 0)},
        **more,
    }


def _cost(this: tuple, exit: str, depth: float, timed: bool) -> dict:
    times = {"p50 ms": 14.2 + 38.1 * depth, "p95 ms": 16.1 + 45.9 * depth, "pairs per second": 600 / depth}
    return {
        **dict(zip(ARM, this, strict=True)),
        **{"exit": exit, "gflops per pair": 0.32 * depth, "parameters": int(12e6 + 1.7e6 * depth)},
        **(times if timed else dict.fromkeys(times)),
        **{"peak memory MiB": 611.4 if timed else None, "candidates": 30, "queries": 50},
        **{"device": "2 x AMD EPYC 7763 64-Core Processor", "precision": "fp32"},
    }


def _point(this: tuple, schedule: str, flops: float, value: float, chosen: bool = False) -> dict:
    return {
        **dict(zip(ARM, this, strict=True)),
        **{"schedule": schedule, "dev flops": flops, "dev": value + 0.004},
        **{"test flops": flops + 0.003, "test": value, "chosen": chosen, "front": True},
    }


def _comparison(split: str, this: tuple, rng: np.random.Generator) -> dict:
    dataset, *cell = this
    difference = -0.01 * rng.random()
    return {
        **{"split": split, "dataset": dataset, "family": "deepest"},
        **dict(zip(ARM[1:], cell, strict=True)),
        "exit": "layer_5",
        **{f"versus_{name}": value for name, value in zip(ARM[2:], cell[1:], strict=True)},
        **{"versus_exit": "layer_6", "seeds": 3, "queries": 300, "value": 0.672, "versus_value": 0.681},
        **{
            "difference": difference,
            "low": difference - 0.011,
            "high": difference + 0.011,
            "p t": 0.0123456789012345678,
            "p randomisation": 2e-5 * (1 + round(9 * rng.random())),
        },
        **{"p Holm": 0.04, "effect size": -0.1, "p noninferior": 0.2, "p noninferior Holm": 0.3},
        **{"noninferior": False, "wins": 60, "ties": 170, "losses": 70},
    }


def _measures(this: tuple, seed: int, queries: int, rng: np.random.Generator, path: Path) -> None:
    exits = ["first_stage", *(f"layer_{layer}" for layer in range(this[3], LAST + 1))]
    base = rng.beta(2, 1, queries)
    values = [
        np.clip(base + (rng.random(queries) < 0.1 * (LAST + 1 - depth)) * rng.normal(0, 0.1, queries), 0, 1)
        for depth in range(len(exits))
    ]
    table = pd.DataFrame(
        [
            (*this, seed, "test", exit, f"q{i}", PRIMARY, v)
            for exit, of_exit in zip(exits, values, strict=True)
            for i, v in enumerate(of_exit)
        ],
        columns=[*ARM, "seed", "split", "exit", "query_id", "measure", "value"],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(path, index=False)


def _log(exits: range, rng: np.random.Generator) -> list[dict]:
    steps = [
        {
            "loss": 9.0,
            **{
                f"contrastive_layer_{k}": 0.5 + 1.6 * np.exp(-s / 200) - 0.05 * k + 0.03 * rng.normal()
                for k in exits
            },
            **{f"distillation_layer_{k}": 1.0 for k in exits},
            **{"step": s, "epoch": s / 500},
        }
        for s in range(10, 1000, 10)
    ]
    looks = [{**{f"eval_layer_{k}": 0.6 for k in exits}, "eval_mean": 0.6, "step": 500}]
    return [*steps, *looks, {"train_runtime": 12.0, "step": 1000}]


def _origin(base: str, start: int, seed: int) -> dict:
    return {
        **{"base": {"model": base}, "base_fingerprint": "5a" * 32, "start_layer": start, "seed": seed},
        **{
            "settings": {"epochs": 1, "learning_rate": 2e-5, "exit_weights": None},
            "groups_sha256": "c0ffee" * 10,
        },
        **{
            "git_commit": "337a3e1c0ffee0ddba11337a3e1c0ffee0ddba11+",
            "lwr": "0.3.0",
            "packages": {"torch": "2.13.0", "numpy": "2.1.0"},
        },
        "machine": {
            "host": "node1",
            "system": "Linux-6.1",
            "processor": "2 x AMD EPYC 7763 64-Core Processor",
        },
        **{"wall_seconds": 61.5 + seed, "energy_joules": None, "peak_memory_mib": 2048},
    }


def _csv(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(path, index=False)


def large() -> list[tuple]:
    """Nine arms."""
    return [
        arm(start=s, variant=v) for s, v in product((2, 4, 6), ("default", "no-distillation", "weighted"))
    ]
