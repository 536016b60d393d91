"""Whether what people read is whole, and what a kill left behind."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from lwr.common.exits import ARM_COLUMNS

TABLES = [f"layers.{kind}" for kind in ("csv", "md", "tex")]
TABLES += [f"{name}.{kind}" for name in ("cost", "cascades", "comparisons") for kind in ("csv", "md")]
TABLES += ["recommendation.md"]
AGAIN = "remove it and run the workflow again"


def table(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8")
    if not text.strip():
        yield f"empty; {AGAIN}"
    if path.suffix == ".csv" and pd.read_csv(path).empty and path.stem != "comparisons":
        yield f"no row in it; {AGAIN}"


def means(path: Path, means: Mapping[tuple, Mapping[int, float]]) -> Iterator[str]:
    """layers.csv against the mean of each seed, by (*arm, exit, column)."""
    table = pd.read_csv(
        path, keep_default_na=False, dtype={name: str for name in ARM_COLUMNS if name != "start_layer"}
    )
    columns = {column for *_, column in means} & set(table)
    rows = {(*row[ARM_COLUMNS].tolist(), row["exit"]): row for _, row in table.iterrows()}
    for key in sorted({key[:-1] for key in means}, key=str):
        first = key[-1] == "first_stage"  # a data set has one, without an arm
        row, where = rows.get((key[0], "", "", 0, "", key[-1]) if first else key), " ".join(map(str, key))
        if row is None:
            yield f"lacks {where}; {AGAIN}"
            continue
        for column in sorted(columns):
            of_seeds = list(means.get((*key, column), {}).values())
            told = float(row[column] or "nan")  # not all data sets have all measures
            mean = float(np.mean(of_seeds)) if of_seeds else np.nan
            if not np.isclose(mean, told, rtol=0, atol=2e-6, equal_nan=True):
                yield f"{column} of {where} is {told}, by its measures {mean:.6f}; {AGAIN}"
    for key in rows.keys() - {key[:-1] for key in means}:
        if key[-1] != "first_stage":
            yield f"tells of {' '.join(map(str, key))}, whose measures are missing; run the workflow again"


def figure(path: Path) -> Iterator[str]:
    data, ends = path.read_bytes(), {".html": b"</html>", ".svg": b"</svg>", ".png": b"IEND\xaeB`\x82"}
    if path.suffix == ".json":
        json.loads(data)
    elif path.suffix in ends and not data.rstrip().endswith(ends[path.suffix]):
        yield f"cut short; {AGAIN}"
    for suffix in (*ends, ".json"):
        if not path.with_suffix(suffix).is_file():
            yield f"{path.with_suffix(suffix)}: missing; run the workflow again"


def page(path: Path) -> Iterator[str]:
    if not path.read_text(encoding="utf-8").rstrip().endswith("</html>"):
        yield f"cut short; {AGAIN}"


def leftovers(results: Path) -> Iterator[str]:
    """What a kill leaves behind; none of it is read by any step, but for checkpoints, which training goes on from."""
    for path in sorted(results.rglob(".draft-*")):
        if not any(parent.name.startswith(".draft-") for parent in path.parents):
            yield f"{path}: left over from a step that was killed; harmless, may be removed"
    for path in sorted(results.glob("cells/*/*/*/*/*/*.checkpoints-*")):
        if (path.parent / "model").is_dir():
            yield f"{path}: left over from a training that has finished; harmless, may be removed"
        else:
            yield f"{path}: of a training that has not finished; it goes on from here"
    for path in sorted(results.glob("cells/*/*/*/*/*/scores/*/*.shards/*.parquet")):
        yield f"{path}: a shard that was not gathered yet, or is left over; harmless"
