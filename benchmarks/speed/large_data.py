"""Measure peak memory and CPU time of the steps that read a corpus, and extrapolate them; print Markdown tables.

    python benchmarks/speed/large_data.py --passages 10000 100000 1000000 --queries 200 2000

Each corpus is synthetic: passages of 60 words from a Zipf vocabulary, and queries of five words, each taken from one
passage, with 20 candidates. `lwr score` scores one shard of 200 queries, by a tiny untrained BERT, so that the memory
of the step shows and not a model's. The seconds of each step are fitted by a + b·passages + c·queries +
d·passages·queries with coefficients of at least 0 and equal weight for each relative error. The largest data that were
measured take no part in the fit, and are compared with it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from multiprocessing import Process
from pathlib import Path

HELPERS = Path(__file__).parents[2] / "tests/helpers"
WORDS, VOCABULARY, DEPTH, SHARD = 60, 100_000, 20, 200
MAKE_MODEL = """
import sys, tiny
from lwr.model.reranker import LayerwiseReranker
model = LayerwiseReranker(tiny.backbone("bert"), tiny.tokenizer(encoder=True), start_layer=2)
model.save_pretrained(sys.argv[1])
"""


@dataclass(frozen=True)
class Usage:
    """What a step took: peak resident MiB, CPU seconds."""

    peak: float
    seconds: float


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--passages", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    options.add_argument("--queries", type=int, nargs="+", default=[200, 2000])
    options.add_argument("--to", type=int, nargs=2, default=[10_000_000, 100_000], help="passages, queries")
    arguments = options.parse_args()
    if uneven := [number for number in arguments.queries if number < SHARD or number % SHARD]:
        options.error(f"--queries {uneven[0]}: give multiples of {SHARD}, the queries of a shard")
    sizes = list(product(sorted(arguments.passages), sorted(arguments.queries)))
    if len(sizes) < 2:
        options.error("one size cannot be extrapolated: give several numbers of passages or queries")
    usage: dict[str, list[Usage]] = {}
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", ".")) as name:
        folder = Path(name)
        environment = os.environ | {"PYTHONPATH": str(HELPERS)}
        subprocess.run([sys.executable, "-c", MAKE_MODEL, f"{folder}/model"], check=True, env=environment)
        steps = step_options(folder, SHARD)
        print("| passages | queries | " + " | ".join(f"`lwr {step}`" for step in steps) + " |")
        print("|---:|---:" + "|---:" * len(steps) + "|")
        for passages, queries in sizes:
            of_size = measure_steps(folder / f"{passages}-{queries}", passages, queries)
            for step, used in of_size.items():
                usage.setdefault(step, []).append(used)
            cells = [f"{used.peak:,.0f} MiB, {used.seconds:,.0f} s" for used in of_size.values()]
            print(f"| {passages:,} | {queries:,} | " + " | ".join(cells) + " |", flush=True)
    print_extrapolation(sizes, usage, tuple(arguments.to))


def measure_steps(folder: Path, passages: int, queries: int) -> dict[str, Usage]:
    """Make data of a size, and measure each step on them."""
    maker = Process(target=make_collection, args=(folder / "made", passages, queries))
    maker.start()
    maker.join()
    steps = step_options(folder, queries)
    return {step: measure(sys.executable, "-m", "lwr.cli", step, *steps[step]) for step in steps}


def make_collection(folder: Path, passages: int, queries: int) -> None:
    """Write a folder in BEIR layout; all queries but two are in the train split."""
    import numpy as np  # not above: see `measure`

    rng = np.random.default_rng(0)
    names = np.array([f"w{i}" for i in range(VOCABULARY)])
    share = np.cumsum(1 / np.arange(1, VOCABULARY + 1))
    with_query = set(rng.choice(passages, queries, replace=False).tolist())
    made = []
    (folder / "qrels").mkdir(parents=True)
    with (folder / "corpus.jsonl").open("w") as corpus:
        for passage in range(passages):
            words = names[np.searchsorted(share, rng.random(WORDS) * share[-1])].tolist()
            row = {"_id": f"doc-{passage:08}", "title": "", "text": " ".join(words)}
            corpus.write(json.dumps(row) + "\n")
            if passage in with_query:
                made.append((f"q{passage}", row["_id"], " ".join(words[:5])))
    rows = [json.dumps({"_id": query_id, "text": text}) for query_id, _, text in made]
    (folder / "queries.jsonl").write_text("\n".join(rows) + "\n")
    for split, part in {"dev": made[:1], "test": made[1:2], "train": made[2:]}.items():
        lines = ["query-id\tcorpus-id\tscore", *(f"{query_id}\t{doc_id}\t1" for query_id, doc_id, _ in part)]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")


def measure(*command: str) -> Usage:
    """Run a command, and return what it took.

    A child starts as a copy of this process, so this process must stay smaller than the child.
    """
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)}: failed")
    return Usage(usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime)


def step_options(folder: Path, queries: int) -> dict[str, list[str]]:
    """Return the options of the measured commands, by command, in order."""
    collection, run = f"{folder}/collection", f"{folder}/train.trec"
    train_split = ["--collection", collection, "--split", "train"]
    source = json.dumps({"source": {"kind": "beir", "path": f"{folder}/made"}})
    return {
        "collect": ["--dataset", source, "--out", collection],
        "retrieve": [*train_split, "--settings", f"{{depth: {DEPTH}}}", "--out", run],
        "mine": [
            *["--collection", collection, "--run", run, "--settings", "{}"],
            *["--out", f"{folder}/groups.jsonl"],
        ],
        "score": [
            *[*train_split, "--model", f"{folder.parent}/model", "--run", run, "--settings", "{}"],
            *["--shard", f"1/{queries // SHARD}", "--out", f"{folder}/scores.parquet"],
        ],
    }


def print_extrapolation(
    sizes: Sequence[tuple[int, int]], usage: dict[str, list[Usage]], to: tuple[int, int]
) -> None:
    """Fit the seconds of each step to all sizes but the last, and print what follows for the last and for `to`."""
    import numpy as np  # not above: see `measure`
    from scipy.optimize import nnls

    def terms(size: tuple[int, int]) -> list[float]:
        passages, queries = size
        return [1, passages, queries, passages * queries]

    print(
        "\n| step | seconds | measured / fitted, largest data | " + f"{to[0]:,} passages, {to[1]:,} queries |"
    )
    print("|:--|:--|---:|---:|")
    for step, used in usage.items():
        seconds = np.array([of_size.seconds for of_size in used])
        # one shard of `lwr score` has the same number of queries in all sizes
        rows = np.array(
            [terms((passages, SHARD if step == "score" else queries)) for passages, queries in sizes]
        )
        weighted = rows[:-1] / seconds[:-1, None]
        scale = weighted.max(axis=0)
        fit = nnls(weighted / scale, np.ones(len(weighted)))[0] / scale
        names = ("", "passages", "queries", "passages·queries")
        shown = " + ".join(
            f"{a:.2g}·{name}" if name else f"{a:.2g}" for a, name in zip(fit, names, strict=True) if a
        )
        predicted = fit @ terms((to[0], SHARD if step == "score" else to[1]))
        each = f" for each of {to[1] // SHARD} shards" if step == "score" else ""
        share = seconds[-1] / (rows[-1] @ fit)
        print(f"| `lwr {step}` | {shown} | {share:.2f} | {predicted / 3600:,.1f} hours{each} |")


if __name__ == "__main__":
    main()
