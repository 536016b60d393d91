"""Compare a training step of lwr with one of FlagEmbedding; print a Markdown table.

    python benchmarks/speed/training.py

A step is forward, backward and AdamW over 4 queries x 8 passages of python-docs, with heads at layers 2..12 of 12. Both
use the same weights, batch, loss and optimiser, and work in turns. Ratios are computed per round; shown are medians and
middle halves. Memory is the peak of the process during a step above its memory before the step (weights, moments); it
is measured in separate runs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from contextlib import ExitStack
from itertools import product
from pathlib import Path

import numpy as np
import torch
from peers import RETURN_MEMORY, contender, describe_machine, format_spread
from workload import GROUPS, build_workload

from lwr.evaluation.flops import count_flops, derive_shape
from lwr.model.reranker import LayerwiseReranker
from lwr.training.throughput import measure_matmul_speed

RECOMPUTE = ("nothing", "cheap")
BACKWARD = 2  # FLOPs of a backward pass, in those of a forward pass


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--environments", type=Path, default=Path.home() / ".cache/lwr-benchmarks")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = build_workload(Path(temporary), queries=GROUPS)
        rows = [len(row) for row in json.loads((folder / "batch.json").read_text())]
        print(f"{describe_machine(given.threads)}\n")
        print(
            f"{len(rows)} rows of {min(rows)} to {max(rows)} tokens, {sum(rows):,} in all, "
            f"{len(rows) * max(rows):,} padded; {given.rounds} rounds.\n"
        )
        torch.set_num_threads(given.threads)
        peak = measure_matmul_speed(torch.device("cpu"), torch.float32, seconds=1.0)
        shape = derive_shape(LayerwiseReranker.from_pretrained(folder / "last", device="cpu").backbone)
        work = (1 + BACKWARD) * count_flops(shape, np.array(rows))[-1].sum()
        print(f"{work / 1e9:,.0f} GFLOP for all weights; float32 products reach {peak / 1e9:,.0f} GFLOP/s.\n")
        print(
            "| what trains | precision | recomputed | s, theirs | ours | faster | MiB, theirs | ours | share |"
        )
        print("|:--|:--|:--|--:|--:|--:|--:|--:|--:|")
        for weights, bf16 in product(("all", "lora"), (False, True)):
            median = compare(folder, weights, bf16, given.rounds, given.threads, given.environments)
            if weights == "all" and not bf16:
                reached = ", ".join(f"{what} {work / s / peak:.0%}" for what, s in median.items())
        print(f"\nOf what products reach, training all weights in float32: {reached}.")


def compare(
    folder: Path, weights: str, bf16: bool, rounds: int, threads: int, environments: Path
) -> dict[str, float]:
    """Print a row for each kind of recomputation, and return the median seconds of each contender."""
    sides = [("flagembedding", "theirs", ("train", str(GROUPS), weights))]
    sides += [("ours", what, ("train", str(GROUPS), weights, what)) for what in RECOMPUTE]
    seconds, peaks, losses = {}, {}, {}
    with ExitStack() as open_:
        ask = {
            name: open_.enter_context(contender(peer, environments, threads, str(folder), *arguments))
            for peer, name, arguments in sides
        }
        for name in ask:
            losses[name] = ask[name](bf16=bf16)["value"]  # warms up
        for _ in range(rounds):
            for name in ask:
                seconds.setdefault(name, []).append(ask[name](bf16=bf16)["seconds"])
    for peer, name, arguments in sides:
        with contender(peer, environments, threads, str(folder), *arguments, **RETURN_MEMORY) as ask_one:
            peaks[name] = [ask_one(bf16=bf16)["mib"] for _ in range(2)][1]
    for name in RECOMPUTE:
        assert abs(losses[name] - losses["theirs"]) < (0.05 if bf16 else 1e-3) * losses["theirs"], losses
        faster = list(np.array(seconds["theirs"]) / seconds[name])
        print(
            f"| {weights} | {'bfloat16' if bf16 else 'float32'} | {name} | {format_spread(seconds['theirs'])} "
            f"| {format_spread(seconds[name])} | {format_spread(faster)} | {peaks['theirs']:,.0f} | {peaks[name]:,.0f} "
            f"| {peaks[name] / peaks['theirs']:.2f} |",
            flush=True,
        )
    return {name: float(np.median(values)) for name, values in seconds.items()}


if __name__ == "__main__":
    main()
