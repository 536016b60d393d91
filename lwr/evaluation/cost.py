"""Measure the cost of each exit and cascade of all arms: FLOPs and parameters are counted, time and memory measured."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from lwr.common.atomic import check_writable
from lwr.common.errors import BadInput
from lwr.common.exits import ARM_COLUMNS, FIRST_STAGE, compressed_name, exit_name, is_layer
from lwr.common.hashing import sha256
from lwr.common.json_lines import write_json
from lwr.common.progress import show_progress
from lwr.common.provenance import ResourceMeter, make_provenance, processor_name
from lwr.config.evaluation import CostConfig, ScoringConfig
from lwr.evaluation.arm_files import check_weights, find_row, read_arm, read_chosen_cascades
from lwr.evaluation.flops import count_flops, count_flops_with_torch, derive_shape
from lwr.evaluation.schedules.replay import candidates_of
from lwr.evaluation.statistics.timing import REPEATS, make_monotone, relative_times, time_in_turns
from lwr.formats import parquet
from lwr.formats.beir import read_candidate_texts, read_queries, sample_queries
from lwr.formats.trec import Run
from lwr.model.cascade_schedule import Compression, Schedule
from lwr.model.reranker import LayerwiseReranker
from lwr.model.storage import read_fusion_of

MEASURED = ("ratio", "ratio_low", "ratio_high", "peak_memory_mib")
"""Fields of an exit that are null where nothing is timed."""


@dataclass(frozen=True)
class ArmFiles:
    """The files of an arm: its first model, what that scored on test, and the cascades chosen for the arm."""

    model: Path  # folder that `lwr train` wrote
    scores: Path  # Parquet that `lwr score` wrote: its candidates are ranked, its tokens counted
    cascade: Path  # JSON that `lwr cascade` wrote; it names the arm
    fusion: Path | None = None  # JSON that `lwr fuse` wrote; None where no cascade is fused

    def read_candidates(self) -> pd.DataFrame:
        """Read what the scores say of each pair beside the scores (see `lwr.scoring.score`)."""
        columns = ["query_id", "doc_id", FIRST_STAGE, "tokens", "cut"]
        table = parquet.read(self.scores, columns)
        return table[
            [*columns, *table.columns.intersection(["passage_tokens", "windows", "last_tokens"], sort=False)]
        ]


@dataclass(frozen=True)
class Contender:
    """A model, and the exit or cascade of it that is timed."""

    reranker: LayerwiseReranker
    schedule: Schedule
    fused: bool = False


@dataclass(frozen=True)
class CandidateList:
    """A test query and its candidates, with the scores of the first stage."""

    query_id: str
    query: str
    doc_ids: Sequence[str]
    passages: Sequence[str]
    first_stage: Sequence[float]


def cost(
    arms: Sequence[ArmFiles],
    collection: Path,
    scoring: ScoringConfig,
    settings: CostConfig,
    out: Path,
    label: str = "cost",
) -> None:
    """Write what each exit and each chosen cascade of every arm take to rank one list of candidates, as JSON.

    FLOPs and parameters are counted. Times, from texts to ranking, tokenising included, are measured in turns
    (`lwr.evaluation.statistics.timing`) and written as ratios to the reference, the deepest exit of the first arm. For
    that, the models of all arms are in memory together. The ratios of an arm's layers never fall with depth.

    Args:
        arms: The arms that rank one data set; their scores must be of the same candidates.
        collection: BEIR folder with the texts.
        scoring: Precision, batch size and windows of the passes, and the widths that are measured, too.
        settings: The number of lists to time.
        out: The file to write.
        label: Printed before each line of progress.

    Raises:
        BadInput: Two arms have different candidates, a fused cascade comes without its weights, or the cost of a
            cascade is not in the file that names it.
    """
    meter = ResourceMeter()
    check_writable(out)
    candidates = _shared_candidates(arms)
    records, contenders = [], []
    for files in arms:
        reranker = LayerwiseReranker.from_pretrained(files.model)
        schedules = _schedules(files, reranker.exits, scoring.widths)
        if settings.queries:
            contenders += _contenders(files, reranker, schedules)
        records.append(_describe_arm(files, reranker, schedules))  # counts weights, which int8 replaces
        if settings.queries:
            reranker.set_precision(scoring.precision)
    reference = None
    if settings.queries:
        lists = read_lists(collection, candidates_of(candidates), settings.queries)
        reference = _add_measurements(records, contenders, lists, scoring, label)
    facts = {
        "device": device_name(),
        "precision": scoring.precision,
        "candidates": round(candidates.groupby("query_id").size().median()),
        "queries": len(lists) if settings.queries else 0,
        "repeats": REPEATS if settings.queries else 0,
        "reference": reference,
        "arms": records,
    }
    write_json(out, make_provenance(meter, **facts))


def _shared_candidates(arms: Sequence[ArmFiles]) -> pd.DataFrame:
    first, *others = arms
    candidates = first.read_candidates()
    for other in others:
        columns = ["query_id", "doc_id"]
        if not other.read_candidates()[columns].equals(candidates[columns]):
            raise BadInput(
                f"{other.scores}: other candidates than {first.scores}; score both for one first stage"
            )
    return candidates


def _schedules(
    files: ArmFiles, layers: Sequence[int], widths: Sequence[tuple[int, int]]
) -> dict[str, Schedule]:
    """Return the schedule of each exit by its name, those of compressed passages behind the others, cascades last.

    Args:
        files: The files of the arm.
        layers: The layers of its exits.
        widths: The (layer, ratio) of each compression that was scored.
    """
    schedules = {exit_name(layer): Schedule.single(layer) for layer in layers}
    for compression in (Compression.at(layer, ratio) for layer, ratio in widths):
        schedules |= {
            compressed_name(layer, compression.steps): Schedule.single(layer).compress(compression)
            for layer in compression.exits_after(layers)
        }
    chosen = read_chosen_cascades(files.cascade, layers)
    return schedules | {name: cascade.schedule for name, cascade in chosen.items()}


def _contenders(
    files: ArmFiles, reranker: LayerwiseReranker, schedules: Mapping[str, Schedule]
) -> list[Contender]:
    """Return what is timed of an arm: its exits alone, and cascades as they were chosen, fused or not."""
    chosen = read_chosen_cascades(files.cascade)
    check_weights(files.cascade, chosen.values(), files.fusion)
    if files.fusion is not None:
        reranker.fusion = read_fusion_of(files.fusion, reranker.exits)
    fused = {name for name, cascade in chosen.items() if cascade.fused}
    return [Contender(reranker, plan, name in fused) for name, plan in schedules.items()]


# --- Counts ---


def _describe_arm(
    files: ArmFiles, reranker: LayerwiseReranker, schedules: Mapping[str, Schedule]
) -> dict[str, Any]:
    """Return what the file says of an arm: its columns, the counts of its exits, and checksums of its files."""
    choice = read_arm(files.cascade, {"schedules": list})
    chosen = read_chosen_cascades(files.cascade)
    candidates, shape = files.read_candidates(), derive_shape(reranker.backbone)
    tokens = candidates["tokens"].to_numpy()
    windows, last_tokens = (
        candidates[name].to_numpy() if name in candidates else None for name in ("windows", "last_tokens")
    )
    count = partial(count_flops, shape, tokens, windows=windows, last_tokens=last_tokens)  # [layers, pairs]
    by_layer = count().mean(axis=1) / 1e9  # GFLOPs [layers]
    exits = []
    for name, schedule in schedules.items():
        if schedule.keep:
            row = find_row(files.cascade, choice["schedules"], chosen[name])
            gflops = by_layer[-1] * row["test flops"]
        elif schedule.compression is None:
            gflops = by_layer[schedule.last - 1]
        else:
            compressed = count(candidates["passage_tokens"].to_numpy(), schedule.compression)
            gflops = compressed[schedule.last - 1].mean() / 1e9
        about = {"exit": name, "schedule": str(schedule)}
        counts = {"gflops_per_pair": float(gflops), "parameters": count_parameters(reranker, schedule.last)}
        exits.append(about | counts | dict.fromkeys(MEASURED))
    return {
        **{column: choice[column] for column in ARM_COLUMNS},
        "cut": float(candidates["cut"].mean()),
        "flops_by_torch_over_formula": _torch_over_formula(reranker, rows=2, tokens=64),
        "exits": exits,
        "inputs": {"scores": sha256(files.scores), "cascade": sha256(files.cascade)},
    }


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


def read_lists(collection: Path, run: Run, at_most: int) -> list[CandidateList]:
    """Read the candidate lists of a sample of queries, chosen by hash.

    Args:
        collection: BEIR folder with the texts.
        run: The candidates.
        at_most: The number of queries, if there are as many.
    """
    sample = sample_queries(run, at_most)
    queries = read_queries(collection)
    texts = read_candidate_texts(collection, "test", {query_id: run[query_id] for query_id in sample})
    return [
        CandidateList(
            query_id,
            queries[query_id],
            [doc for doc, _ in run[query_id]],
            [texts[doc] for doc, _ in run[query_id]],
            [score for _, score in run[query_id]],
        )
        for query_id in sample
    ]


def _add_measurements(
    records: Sequence[dict[str, Any]],
    contenders: Sequence[Contender],
    lists: Sequence[CandidateList],
    scoring: ScoringConfig,
    label: str,
) -> dict[str, Any]:
    """Measure the contenders, add the result to the exits of `records`, and return the times of the reference."""

    def rank(contender: Contender, ranked: CandidateList) -> None:
        plan = contender.schedule
        first_stage = ranked.first_stage if plan.uses_first_stage(contender.fused) else None
        rank_texts(
            contender.reranker, ranked.query, ranked.passages, plan, scoring, first_stage, contender.fused
        )

    longest = max(lists, key=lambda ranked: sum(map(len, ranked.passages)))
    memory = [
        peak_memory_of(contender.reranker, lambda contender=contender: rank(contender, longest))
        for contender in show_progress(contenders, len(contenders), f"{label}, memory")
    ]
    names = [exit["exit"] for exit in records[0]["exits"]]
    reference = max(i for i, name in enumerate(names) if is_layer(name))
    seconds = time_in_turns(rank, contenders, lists, label)
    times = relative_times(seconds, reference)  # [3, contenders]

    before = 0
    for record in records:
        exits = record["exits"]
        of_arm = slice(before, before + len(exits))
        own = times[:, of_arm]  # [3, exits], a view
        layers = [i for i, exit in enumerate(exits) if is_layer(exit["exit"])]
        own[:, layers] = make_monotone(own[:, layers])
        for exit, (low, ratio, high), mib in zip(exits, own.T.tolist(), memory[of_arm], strict=True):
            exit |= {"ratio": ratio, "ratio_low": low, "ratio_high": high, "peak_memory_mib": mib}
        before += len(exits)

    by_list = np.median(seconds[reference], axis=0)  # [lists]
    p50, p95 = np.percentile(by_list, [50, 95]) * 1000
    pairs = sum(len(ranked.passages) for ranked in lists)
    return {
        **{column: records[0][column] for column in ARM_COLUMNS},
        "exit": names[reference],
        "p50_ms": float(p50),
        "p95_ms": float(p95),
        "pairs_per_second": pairs / float(by_list.sum()),
    }


def rank_texts(
    reranker: LayerwiseReranker,
    query: str,
    passages: Sequence[str],
    schedule: Schedule,
    scoring: ScoringConfig,
    first_stage: Sequence[float] | None = None,
    fused: bool = False,
) -> np.ndarray:
    """Rank passages, given as texts; this is what is timed. Return int64 [passages], indices from best to worst."""
    pairs = [(query, passage) for passage in passages]
    rows = reranker.rows_to_read(pairs, schedule, first_stage, windows=scoring.windows)
    return reranker.rank_rows(
        rows, schedule, scoring.tokens_per_batch, first_stage=first_stage, fused=fused
    ).order


def peak_memory_of(reranker: LayerwiseReranker, run: Callable[[], object]) -> float | None:
    """Return the MiB of a model's weights and of what `run` needs beside them; None if the system cannot measure it."""
    if not reset_peak_memory():
        return None
    before = peak_memory()
    run()
    tensors = chain(reranker.parameters(), reranker.buffers())
    weights = sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**20
    return weights + peak_memory() - before


def reset_peak_memory() -> bool:
    """Reset the peak memory; return whether the system can measure it.

    Without a GPU, memory that glibc holds for reuse is first given back, so that it counts again where it is used.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return True
    _return_free_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _return_free_memory() -> None:
    with suppress(AttributeError):  # other C libraries
        ctypes.CDLL(None).malloc_trim(0)


def peak_memory() -> float:
    """Return the peak since `reset_peak_memory` in MiB: of tensors on a GPU, otherwise of the complete process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
