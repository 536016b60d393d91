"""Compare the time that lwr, FlagEmbedding and CrossEncoder take to score 100 candidates; print Markdown tables.

    python benchmarks/speed/scoring.py          # 35 minutes
    python benchmarks/speed/scoring.py --ours   # depths of lwr alone: 5 minutes

A round is one query of python-docs with its BM25 candidates, from texts to scores. All contenders score it before the
next round, each round in another order. Ratios are computed per round; shown are medians and middle halves. lwr scores
all exits from layer 2 on in one pass; FlagEmbedding's compute_score and CrossEncoder.predict score the deepest alone.
All use float32, the same weights and the same tokens.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from depth import count_schedule_flops
from peers import contender, describe_machine, format_spread
from tqdm import tqdm
from workload import LAYERS, START, build_workload

from lwr.evaluation.flops import count_flops, derive_shape
from lwr.model.cascade_schedule import Schedule
from lwr.model.reranker import LayerwiseReranker
from lwr.training.throughput import measure_matmul_speed

ALL = list(range(START, LAYERS + 1))
CASCADE = "2:30 5:10 12"


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--queries", type=int, default=50)
    options.add_argument("--ours", action="store_true", help="full depth, half depth and cascade alone")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--environments", type=Path, default=Path.home() / ".cache/lwr-benchmarks")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = build_workload(Path(temporary), given.queries)
        lists = json.loads((folder / "lists.json").read_text())
        print(f"{describe_machine(given.threads)}\n")
        with ExitStack() as open_:

            def side(peer: str, *arguments: str):
                return open_.enter_context(
                    contender(peer, given.environments, given.threads, str(folder), *arguments)
                )

            first = side("ours", "first")
            sides = {
                "ours": (first, {"layers": ALL}),
                "ours, half depth": (first, {"layers": [LAYERS // 2]}),
                "ours, cascade": (first, {"layers": ALL, "cascade": CASCADE}),
            }
            if not given.ours:
                deepest = {"layers": [LAYERS]}
                sides = {
                    "FlagEmbedding": (side("flagembedding", "score"), deepest),
                    "ours, its prompt": (side("ours", "last"), {"layers": ALL}),
                    "CrossEncoder": (side("cross_encoder"), deepest),
                } | sides
                _check_scores(sides)
            times = time_rounds(sides, len(lists))
        peak = measure_matmul_speed(torch.device("cpu"), torch.float32, seconds=1.0)
        print(
            f"{len(lists)} queries of {len(lists[0][1])} candidates. Cascade: `{CASCADE}`. Matrix products reach "
        )
        print(f"{peak / 1e9:.0f} GFLOP/s here ({given.threads} threads, float32).\n")
        print("| contender | seconds a query | lwr is faster | GFLOP a query | of the peak |")
        print("|:--|--:|--:|--:|--:|")
        work = _work(folder, lists)
        for name, seconds in times.items():
            against = {"FlagEmbedding": "ours, its prompt", "CrossEncoder": "ours"}.get(name)
            faster = format_spread(list(np.array(seconds) / times[against])) + "x" if against else ""
            share = f"{work[name] / np.mean(seconds) / peak:.0%}" if name in work else ""
            gflop = f"{work[name] / 1e9:.0f}" if name in work else ""
            print(f"| {name} | {format_spread(seconds)} | {faster} | {gflop} | {share} |")
        print()
        print("| ours | faster than our full depth |\n|:--|--:|")
        for name in ("ours, half depth", "ours, cascade"):
            print(
                f"| {name.removeprefix('ours, ')} | {format_spread(list(np.array(times['ours']) / times[name]))}x |"
            )


def time_rounds(sides: dict, queries: int) -> dict[str, list[float]]:
    """Return the seconds of each contender in each round."""
    names, seconds = list(sides), {name: [] for name in sides}
    for name in names:
        ask, task = sides[name]
        ask(lists_from=0, lists_to=1, **task)  # warms up
    for turn in tqdm(range(queries), "queries"):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            ask, task = sides[name]
            seconds[name].append(ask(lists_from=turn, lists_to=turn + 1, **task)["seconds"])
    return seconds


def _check_scores(sides: dict) -> None:
    """Check that lwr and its peers give the same scores."""
    for ours, theirs in (("ours, its prompt", "FlagEmbedding"), ("ours", "CrossEncoder")):
        values = []
        for name in (ours, theirs):
            ask, task = sides[name]
            values.append(np.array(ask(lists_from=0, lists_to=1, **task)["value"]).squeeze())
        assert abs(values[0] - values[1]).max() < 1e-4, f"the scores of {ours} and {theirs} differ"


def _work(folder: Path, lists: list) -> dict[str, float]:
    """Return the mean FLOPs per query of each contender of lwr, for unpadded rows that share nothing."""
    work = {}
    for name, checkpoint in (("ours, its prompt", "last"), ("ours", "first")):
        reranker = LayerwiseReranker.from_pretrained(folder / checkpoint, device="cpu")
        pairs = [(query, passage) for query, passages in lists for passage in passages]
        tokens = np.array([len(row) for row in reranker.prompt.rows(pairs)])
        by_layer = [0.0, *count_flops(derive_shape(reranker.backbone), tokens).sum(axis=1) / len(lists)]
        work[name] = by_layer[LAYERS]
    work["ours, half depth"] = by_layer[LAYERS // 2]
    return work | {"ours, cascade": count_schedule_flops(Schedule.parse(CASCADE), by_layer, len(lists[0][1]))}


if __name__ == "__main__":
    main()
