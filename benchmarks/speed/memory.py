"""Measure peak memory and CPU time of the steps that read a corpus, for growing corpora; print a Markdown table.

    python benchmarks/speed/memory.py 10000 100000 1000000

Each corpus is synthetic: passages of 60 words from a Zipf vocabulary, and 200 queries of five words, each taken from
one passage. The model that scores is a tiny untrained BERT, so that the memory of the steps shows and not a model's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from multiprocessing import Process
from pathlib import Path

ROOT = Path(__file__).parent.parent
QUERIES, WORDS, VOCABULARY = 200, 60, 100_000
MAKE_MODEL = """
import sys, tiny
from lwr.model.reranker import LayerwiseReranker
model = LayerwiseReranker(tiny.backbone("bert"), tiny.tokenizer(encoder=True), start_layer=2)
model.save_pretrained(sys.argv[1])
"""


def make_collection(folder: Path, passages: int) -> None:
    """Write a folder in BEIR layout; all queries but two are in the train split."""
    import numpy as np  # not above: see `measure`

    rng = np.random.default_rng(0)
    names = np.array([f"w{i}" for i in range(VOCABULARY)])
    share = np.cumsum(1 / np.arange(1, VOCABULARY + 1))
    with_query = set(rng.choice(passages, QUERIES, replace=False).tolist())
    queries = []
    (folder / "qrels").mkdir(parents=True)
    with (folder / "corpus.jsonl").open("w") as corpus:
        for passage in range(passages):
            words = names[np.searchsorted(share, rng.random(WORDS) * share[-1])].tolist()
            row = {"_id": f"doc-{passage:08}", "title": "", "text": " ".join(words)}
            corpus.write(json.dumps(row) + "\n")
            if passage in with_query:
                queries.append((f"q{passage}", row["_id"], " ".join(words[:5])))
    rows = [json.dumps({"_id": query_id, "text": text}) for query_id, _, text in queries]
    (folder / "queries.jsonl").write_text("\n".join(rows) + "\n")
    for split, part in {"dev": queries[:1], "test": queries[1:2], "train": queries[2:]}.items():
        lines = ["query-id\tcorpus-id\tscore", *(f"{query_id}\t{doc_id}\t1" for query_id, doc_id, _ in part)]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")


def measure(*command: str) -> tuple[float, float]:
    """Run a command; return its peak resident MiB and its CPU seconds.

    A child starts as a copy of this process, so this process must stay smaller than the child.
    """
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)}: failed")
    return usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime


def step_options(folder: Path) -> dict[str, list[str]]:
    """Return the options of the measured commands, by command, in order."""
    collection, run = f"{folder}/collection", f"{folder}/train.trec"
    train_split = ["--collection", collection, "--split", "train"]
    source = json.dumps({"source": {"kind": "beir", "path": f"{folder}/made"}})
    return {
        "collect": ["--dataset", source, "--out", collection],
        "retrieve": [*train_split, "--settings", "{depth: 20}", "--out", run],
        "mine": [
            "--collection",
            collection,
            "--run",
            run,
            "--settings",
            "{}",
            "--out",
            f"{folder}/groups.jsonl",
        ],
        "score": [
            *[*train_split, "--model", f"{folder.parent}/model", "--run", run, "--settings", "{}"],
            *["--out", f"{folder}/scores.parquet"],
        ],
    }


def main(sizes: list[int]) -> None:
    """Measure and print a row for each number of passages."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", ".")) as name:
        folder = Path(name)
        environment = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
        subprocess.run([sys.executable, "-c", MAKE_MODEL, f"{folder}/model"], check=True, env=environment)
        print("| passages | corpus | " + " | ".join(f"`lwr {step}`" for step in step_options(folder)) + " |")
        print("|---:|---:" + "|---:" * len(step_options(folder)) + "|")
        for size in sizes:
            at = folder / str(size)
            maker = Process(target=make_collection, args=(at / "made", size))
            maker.start()
            maker.join()
            corpus = (at / "made/corpus.jsonl").stat().st_size / 2**20
            cells = [f"{size:,}", f"{corpus:,.0f} MiB"]
            for step, arguments in step_options(at).items():
                peak, seconds = measure(sys.executable, "-m", "lwr.cli", step, *arguments)
                cells.append(f"{peak:,.0f} MiB, {seconds:,.0f} s")
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main([int(size) for size in sys.argv[1:]])
