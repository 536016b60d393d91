"""Measure what each exit and the cascade cost: FLOPs and parameters are counted, time and memory measured."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lwr.common.exits import CASCADE, FIRST_STAGE, exit_name
from lwr.common.hashing import sha256
from lwr.common.json_lines import read_json, write_json
from lwr.common.progress import show_progress
from lwr.common.provenance import ResourceMeter, make_provenance, processor_name
from lwr.config.evaluation import CostConfig, ScoringConfig
from lwr.evaluation.arm_files import read_chosen_cascade
from lwr.evaluation.flops import count_flops, count_flops_with_torch, derive_shape
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
    """Write the FLOPs, parameters, time and memory of ranking one query's candidates, per exit, as JSON.

    Times are in milliseconds from texts to ranking, tokenising included, of one list of candidates at a time.

    Args:
        model: Folder that `lwr train` wrote.
        collection: BEIR folder with the texts.
        scores: Scores of test, as `lwr score` writes them: their candidates are ranked, their tokens counted.
        cascade: JSON that `lwr cascade` wrote.
        scoring: Precision and batch size of the passes.
        settings: The number of lists to time.
        arm: The columns that identify the arm, written at the top of the file.
        out: The file to write.
        label: Printed before each line of progress.
    """
    meter = ResourceMeter()
    columns = ["query_id", "doc_id", FIRST_STAGE, "tokens"]
    candidates = parquet.read(scores, columns)[columns]
    choice = read_json(cascade, {"schedules": list})
    reranker = LayerwiseReranker.from_pretrained(model)
    schedules = {exit_name(layer): Schedule.single(layer) for layer in reranker.exits}
    chosen = read_chosen_cascade(cascade, reranker.exits)
    if chosen is not None:
        schedules[CASCADE] = chosen.schedule

    tokens = candidates["tokens"].to_numpy()
    by_layer = count_flops(derive_shape(reranker.backbone), tokens).mean(axis=1) / 1e9  # GFLOPs [layers]
    shares = {row["schedule"]: row["test flops"] for row in choice["schedules"]}
    timed = time_lists(reranker, collection, candidates, schedules, scoring, settings.queries or 0, label)
    exits = []
    for name, schedule in schedules.items():
        gflops = by_layer[-1] * shares[str(schedule)] if schedule.keep else by_layer[schedule.last - 1]
        about = {"exit": name, "schedule": str(schedule)}
        counts = {"gflops_per_pair": float(gflops), "parameters": count_parameters(reranker, schedule.last)}
        exits.append(about | counts | timed[name])
    facts = {
        **arm,
        "device": device_name(),
        "precision": scoring.precision,
        "candidates": round(candidates.groupby("query_id").size().median()),
        "queries": settings.queries or 0,
        "flops_by_torch_over_formula": _torch_over_formula(reranker, rows=2, tokens=64),
        "exits": exits,
        "inputs": {"scores": sha256(scores), "cascade": sha256(cascade)},
    }
    write_json(out, make_provenance(meter, **facts))


def _torch_over_formula(reranker: LayerwiseReranker, rows: int, tokens: int) -> float:
    """Divide the FLOPs that torch counts in a full pass by those of the closed form."""
    device = reranker.heads[0].device
    input_ids = torch.arange(rows * tokens, device=device).reshape(rows, tokens) % 100 + 3
    by_formula = rows * float(count_flops(derive_shape(reranker.backbone), np.array(tokens))[-1])
    return count_flops_with_torch(reranker.backbone, input_ids) / by_formula


def count_parameters(reranker: LayerwiseReranker, layer: int) -> int:
    """Count the numbers that a pass to `layer` reads: without later blocks and modules that no head needs."""
    later = {p for block in reranker.stack.blocks[layer:] for p in block.parameters()}
    unused = {p for module in reranker.stack.unused for p in module.parameters()}
    read = [p for p in reranker.backbone.parameters() if p not in later and p not in unused]
    return sum(p.numel() for p in read) + reranker.head(layer).numel()


def device_name() -> str:
    """Return the name of the GPU, or of the processor with the number of threads, on which times are measured."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"{threads} thread{'s' if threads > 1 else ''} of {processor_name()}"


# --- Time and memory ---


@dataclass
class Timings:
    """The measurements of one exit, a number per list."""

    seconds: list[float] = field(default_factory=list)
    peak_memory_mib: list[float] = field(default_factory=list)  # empty where the system cannot measure it

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Add the time and the peak memory of the block."""
        can_measure_memory = reset_peak_memory()
        began = time.perf_counter()
        yield
        self.seconds.append(time.perf_counter() - began)
        if can_measure_memory:
            self.peak_memory_mib.append(peak_memory())

    def summary(self, pairs: int) -> dict[str, float | None]:
        """Return percentiles, throughput and peak memory; None for what was not measured."""
        memory = max(self.peak_memory_mib, default=None)
        if not self.seconds:
            return {"p50_ms": None, "p95_ms": None, "pairs_per_second": None, "peak_memory_mib": memory}
        p50, p95 = np.percentile(self.seconds, [50, 95]) * 1000
        return {
            "p50_ms": float(p50),
            "p95_ms": float(p95),
            "pairs_per_second": pairs / sum(self.seconds),
            "peak_memory_mib": memory,
        }


def time_lists(
    reranker: LayerwiseReranker,
    collection: Path,
    candidates: pd.DataFrame,
    schedules: Mapping[str, Schedule],
    scoring: ScoringConfig,
    sample_size: int,
    label: str,
) -> dict[str, dict[str, float | None]]:
    """Time the ranking of single lists by each schedule, in turns.

    Each list is ranked by all schedules before the next list, and the schedule that is first changes from list to list,
    so that other load on the machine slows all schedules alike. Before that, the first list is ranked once without
    measuring.

    Args:
        reranker: The model.
        collection: BEIR folder with the texts.
        candidates: Columns query_id, doc_id, first_stage.
        schedules: Name of an exit -> the schedule that it runs.
        scoring: Precision and batch size of the passes.
        sample_size: Number of queries, sampled by hash.
        label: Printed before each line of progress.

    Returns:
        p50_ms, p95_ms, pairs_per_second and peak_memory_mib per name; None without queries.
    """
    run = {
        query: list(zip(ranked["doc_id"], ranked[FIRST_STAGE], strict=True))
        for query, ranked in candidates.groupby("query_id", sort=False)
    }
    sample = sample_queries(run, sample_size) if sample_size else []
    queries = read_queries(collection)
    texts = read_candidate_texts(collection, "test", {query_id: run[query_id] for query_id in sample})

    def rank(query_id: str, schedule: Schedule) -> None:
        passages = [texts[doc] for doc, _ in run[query_id]]
        rank_texts(reranker, queries[query_id], passages, schedule, scoring)

    names, timings = list(schedules), {name: Timings() for name in schedules}
    for query_id in sample[:1]:
        for schedule in schedules.values():
            rank(query_id, schedule)
    for turn, query_id in enumerate(show_progress(sample, len(sample), label)):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            with timings[name].measure():
                rank(query_id, schedules[name])
    pairs = sum(len(run[query_id]) for query_id in sample)
    return {name: timings[name].summary(pairs) for name in names}


def rank_texts(
    reranker: LayerwiseReranker,
    query: str,
    passages: Sequence[str],
    schedule: Schedule,
    scoring: ScoringConfig,
) -> np.ndarray:
    """Rank passages, given as texts; this is what is timed. Return int64 [passages], indices from best to worst."""
    rows = reranker.prompt.rows([(query, passage) for passage in passages])
    return reranker.rank_rows(rows, schedule, scoring.tokens_per_batch, scoring.precision).order


def reset_peak_memory() -> bool:
    """Reset the peak memory; return whether the system can measure it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_memory() -> float:
    """Return the peak since `reset_peak_memory` in MiB: of tensors on a GPU, otherwise of the complete process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
