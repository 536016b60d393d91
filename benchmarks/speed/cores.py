"""Compare training and scoring on one thread with two; print a Markdown table.

    python benchmarks/speed/cores.py

A training is steps of 8 groups of 4 passages of python-docs with all-MiniLM-L6-v2, by `lwr.training.train`. A scoring
is of the BM25 candidates of test queries at all exits, by `lwr.scoring.score`. Each number of threads has a process,
and they work in turns. Ratios are computed per round; shown are medians and middle halves. `train` and `score` include
what a second thread does not speed up, such as reading and writing files; `its steps` are the steps of the training.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd
from peers import contender, describe_machine, format_spread
from safetensors.numpy import load_file

from lwr.config.data.dataset import DatasetConfig, MiningConfig
from lwr.config.data.first_stage import Bm25FirstStage
from lwr.config.data.sources import PythonDocsSource
from lwr.data.collect import collect
from lwr.data.mine import mine
from lwr.data.retrieve import retrieve

THREADS = (1, 2)


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--steps", type=int, default=20, help="of a training")
    options.add_argument("--queries", type=int, default=50, help="that are scored, with 20 candidates each")
    given = options.parse_args()
    print(f"{describe_machine(max(THREADS))}, and {given.rounds} rounds\n")
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = write_inputs(Path(temporary), given.queries)
        workers = {
            threads: stack.enter_context(contender("cores", folder, threads, str(folder)))
            for threads in THREADS
        }
        for threads in THREADS[::-1]:  # warms up; both then score with the weights of one thread
            workers[threads](step="train", out=f"warm{threads}", steps=1)
        workers[1](step="train", out="model", steps=given.steps)
        seconds = {what: {threads: [] for threads in THREADS} for what in ("train", "its steps", "score")}
        for turn in range(given.rounds):
            for threads in THREADS[:: 1 if turn % 2 == 0 else -1]:
                answer = workers[threads](step="train", out=f"model{threads}", steps=given.steps)
                seconds["train"][threads].append(answer["seconds"])
                seconds["its steps"][threads].append(answer["value"])
                answer = workers[threads](step="score", out=f"scores{threads}", steps=0)
                seconds["score"][threads].append(answer["seconds"])
        print("| what | s, 1 thread | 2 threads | faster |\n|:--|--:|--:|--:|")
        for what, by_threads in seconds.items():
            one, two = (by_threads[threads] for threads in THREADS)
            faster = format_spread(list(np.array(one) / two))
            print(f"| {what} | {format_spread(one)} | {format_spread(two)} | {faster} |")
        print(f"\nDifferences between 1 and 2 threads: {describe_differences(folder)}.")


def write_inputs(folder: Path, queries: int) -> Path:
    """Write a collection, its runs and its training groups to the folder."""
    dataset = DatasetConfig(source=PythonDocsSource(kind="python_docs"), queries={"dev": 10, "test": queries})
    collection = folder / "collection"
    collect(dataset, collection)
    for split in ("train", "dev", "test"):
        retrieve(collection, folder / f"{split}.trec", split, Bm25FirstStage(depth=20))
    mine(
        collection,
        folder / "train.trec",
        folder / "groups.jsonl",
        MiningConfig(negatives=3, depth=(1, 20), groups=800),
    )
    return folder


def describe_differences(folder: Path) -> str:
    """Return the largest differences of trained weights and of the scores by the same weights."""
    one, two = (load_file(folder / f"model{threads}" / "model.safetensors") for threads in THREADS)
    weights = max(float(abs(one[name] - two[name]).max()) for name in one)
    tables = [pd.read_parquet(folder / f"scores{threads}").filter(like="layer_") for threads in THREADS]
    scores = float(abs(tables[0] - tables[1]).to_numpy().max())
    return f"weights {weights:.1e}, scores by the same weights {scores:.1e} (0: equal to the bit)"


if __name__ == "__main__":
    main()
