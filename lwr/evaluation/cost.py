"""What each exit, and the cascade, costs: FLOPs and parameters by count, time and memory by measurement."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from lwr.common.hashing import sha256
from lwr.common.json_lines import read_json, write_json
from lwr.common.progress import show_progress
from lwr.common.provenance import ResourceMeter, make_provenance, processor_name
from lwr.config.evaluation import CostConfig, ScoringConfig
from lwr.evaluation.arm_files import read_chosen_schedule
from lwr.evaluation.flops import counted, flops, shape_of
from lwr.formats import parquet
from lwr.formats.beir import read_candidate_texts, read_queries, sample_queries
from lwr.model.cascade_schedule import Schedule
from lwr.model.reranker import LayerwiseReranker


def cost(
    model: Path,
    collection: Path,
    scores: Path,
    cascade: Path,
    scoring: ScoringConfig,
    settings: CostConfig,
    arm: dict[str, str | int],
    out: Path,
    label: str = "cost",
) -> None:
    """Write JSON: per exit and for the cascade FLOPs, parameters, and the time and memory of ranking one query's list.

    scores: of test, as `lwr score` writes it: its candidates are ranked, its tokens counted. cascade: as
    `lwr cascade` writes it. Times are in milliseconds from texts to ranking, tokenising included, of one list at a
    time; each list is ranked by all exits in turn before the next list comes, each time another exit first.
    """
    meter = ResourceMeter()
    columns = ["query_id", "doc_id", "first_stage", "tokens"]
    candidates = parquet.read(scores, columns)[columns]
    decided = read_json(cascade, {"schedules": list})
    reranker = LayerwiseReranker.from_pretrained(model)
    schedule = read_chosen_schedule(cascade, reranker.exits)
    plans = {f"layer_{k}": Schedule.single(k) for k in reranker.exits}
    if schedule is not None:
        plans["cascade"] = schedule

    by_layer = flops(shape_of(reranker.backbone), candidates["tokens"].to_numpy()).mean(axis=1) / 1e9
    share = {row["schedule"]: row["test flops"] for row in decided["schedules"]}
    timed = time_lists(reranker, collection, candidates, plans, scoring, settings.queries or 0, label)
    exits = []
    for name, schedule in plans.items():
        gflops = by_layer[-1] * share[str(schedule)] if schedule.keep else by_layer[schedule.last - 1]
        counts = {"gflops_per_pair": float(gflops), "parameters": parameters(reranker, schedule.last)}
        exits.append({"exit": name, "schedule": str(schedule), **counts, **timed[name]})
    sample = torch.arange(2 * 64, device=reranker.heads[0].device).reshape(2, 64) % 100 + 3
    facts = {
        **arm,
        "device": device(),
        "precision": scoring.precision,
        "candidates": round(candidates.groupby("query_id").size().median()),
        "queries": settings.queries or 0,
        "flops_by_torch_over_formula": counted(reranker.backbone, sample) / _full_pass(reranker, 2, 64),
        "exits": exits,
        "inputs": {"scores": sha256(scores), "cascade": sha256(cascade)},
    }
    write_json(out, make_provenance(meter, **facts))


def _full_pass(reranker: LayerwiseReranker, rows: int, tokens: int) -> float:
    return rows * float(flops(shape_of(reranker.backbone), np.array(tokens))[-1])


def parameters(reranker: LayerwiseReranker, layer: int) -> int:
    """How many numbers a pass to `layer` reads: all but later blocks and what no head reads; one head."""
    later = {p for block in reranker.stack.blocks[layer:] for p in block.parameters()}
    unused = {p for module in reranker.stack.unused for p in module.parameters()}
    read = [p for p in reranker.backbone.parameters() if p not in later and p not in unused]
    return sum(p.numel() for p in read) + reranker.head(layer).numel()


def device() -> str:
    """What times were measured on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"{threads} thread{'s' if threads > 1 else ''} of {processor_name()}"


def time_lists(
    reranker: LayerwiseReranker,
    collection: Path,
    candidates: pd.DataFrame,
    plans: dict[str, Schedule],
    scoring: ScoringConfig,
    queries: int,
    label: str,
) -> dict[str, dict[str, float | None]]:
    """Of each plan p50_ms and p95_ms over `queries` lists, pairs_per_second, peak_memory_mib; None of no list.

    The queries are a sample by hash. The first list is ranked once more before, unmeasured.
    """
    run = {
        query: list(zip(ranked["doc_id"], ranked["first_stage"], strict=True))
        for query, ranked in candidates.groupby("query_id", sort=False)
    }
    sample = sample_queries(run, queries) if queries else []
    asked, texts = (
        read_queries(collection),
        read_candidate_texts(collection, "test", {q: run[q] for q in sample}),
    )
    seconds: dict[str, list[float]] = {name: [] for name in plans}
    memory: dict[str, list[float]] = {name: [] for name in plans}
    names = list(plans)

    def ranked(query: str, name: str) -> None:
        passages = [texts[doc] for doc, _ in run[query]]
        rank_texts(reranker, asked[query], passages, plans[name], scoring)

    for name in names if sample else []:
        ranked(sample[0], name)
    for turn, query in enumerate(show_progress(sample, len(sample), label)):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            measurable = reset_peak_memory()
            began = time.perf_counter()
            ranked(query, name)
            seconds[name].append(time.perf_counter() - began)
            if measurable:
                memory[name].append(peak_memory())
    pairs = sum(len(run[query]) for query in sample)
    return {name: _summary(seconds[name], memory[name], pairs) for name in plans}


def rank_texts(
    reranker: LayerwiseReranker,
    query: str,
    passages: Sequence[str],
    schedule: Schedule,
    scoring: ScoringConfig,
) -> np.ndarray:
    """What is timed: places of the passages, best first, int64."""
    rows = reranker.prompt.rows([(query, passage) for passage in passages])
    return reranker.rank_rows(rows, schedule, scoring.tokens_per_batch, scoring.precision).order


def _summary(seconds: Sequence[float], memory: Sequence[float], pairs: int) -> dict[str, Any]:
    p50, p95 = np.percentile(seconds, [50, 95]) * 1000 if seconds else (None, None)
    return {
        "p50_ms": p50 and float(p50),
        "p95_ms": p95 and float(p95),
        "pairs_per_second": pairs / sum(seconds) if seconds else None,
        "peak_memory_mib": max(memory, default=None),
    }


def reset_peak_memory() -> bool:
    """Start to look for the peak anew; False where the system can't."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_memory() -> float:
    """MiB since `reset_peak_memory`: of a GPU what tensors took, else of the whole process what stood in memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
