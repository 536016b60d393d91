"""Compare time and quality with the programs in which a CPU user would run the same model; print a Markdown table.

    pip install 'lwr[onnx,openvino,sentence-transformers]'
    python benchmarks/speed/backends.py results scifact --arm minilm/start2/default
    python benchmarks/speed/backends.py results scifact --candidates 10 --words 35    # small lists of short passages
    python benchmarks/speed/backends.py results scifact --passage-tokens 480          # complete passages
    python benchmarks/speed/backends.py results scifact --only 'all exits' 'OpenVINO' # fewer contenders

For a grid whose models are trained and whose cascades are chosen. The peers get the deepest exit by `lwr export`: the
CrossEncoder of sentence-transformers, onnxruntime after optimisation O3 and in int8, OpenVINO in float32 and with
weights in int8. They sort pairs by length, as sentence-transformers does, and compute the fastest of three batch sizes.
Ours are the deepest exit, all exits, half of the depth, and the schedules that `lwr cascade` chose, in float32 and
int8; and the deepest exit by layers as loaded, which `lwr.model.linear.onednn` has not replaced. Where the CPU is
faster in bfloat16, ours and OpenVINO, whose default it then is, compute in it, too.
`--passage-tokens` changes what all programs read, but neither schedules nor weights of fused scores, which were chosen
for passages as the grid reads them.

Quality is that of a sample of test queries, chosen by hash; differences to our deepest exit in float32 are paired by
query, with 95% bootstrap intervals. Times, from texts to ranking, are ratios to that exit on the same list in the same
round; all contenders rank a list before the next list comes. With one thread, processor time counts, which other
programs on the machine do not lengthen by their turns. The last column compares the FLOPs of the tokens, without
padding, with what a product of large matrices reaches on the same machine in the same precision. A second table says
what part of our time on the first list goes into products of linear layers, attention, other operations, and the rest:
tokenising, Python, and the profiler itself.

As in the commands of lwr, the process keeps freed memory (`lwr.cli.allocator`), from which all contenders gain.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoTokenizer

from lwr.cli.allocator import keep_freed_memory
from lwr.common.exits import Arm
from lwr.common.json_lines import read_json, write_json
from lwr.common.progress import show_progress
from lwr.common.results_tree import ResultsTree
from lwr.evaluation.arm_files import read_chosen_cascades
from lwr.evaluation.cost import CandidateList, device_name, read_lists
from lwr.evaluation.flops import BackboneShape, count_flops, derive_shape
from lwr.evaluation.measures import measures_per_query
from lwr.evaluation.statistics.paired_tests import interval
from lwr.evaluation.statistics.timing import relative_times, time_in_turns
from lwr.export.export import GraphPrecision, Layout, Optimization, export
from lwr.formats.beir import read_qrels
from lwr.formats.trec import read_run
from lwr.model.cascade_schedule import Schedule
from lwr.model.linear.half import time_ratio
from lwr.model.linear.int8 import find_weight_limit, multiply
from lwr.model.linear.onednn import OneDnnLinear, is_faster
from lwr.model.reranker import LayerwiseReranker
from lwr.model.storage import read_fusion_of

MEASURE = "nDCG@10"
BATCH_SIZES = (8, 32, 128)
"""Of the peers, which compute padded batches; the fastest is taken."""
SEARCHED_LISTS = 3
"""The number of lists by which it is found."""

OPERATIONS = {
    "products": ("aten::addmm", "aten::mm", "mkldnn::_linear_pointwise", "onednn::qlinear_pointwise"),
    "attention": ("aten::_scaled_dot_product",),
}
"""Kind of operation -> how their names begin in PyTorch's profiler."""

Precision = Literal["float32", "bfloat16", "int8"]


@dataclass(frozen=True)
class Ranked:
    """What a contender makes of a list: indices, best first, and the number of blocks that read each candidate.

    No depth: all blocks read all candidates.
    """

    order: Sequence[int]
    depth: Sequence[int] = ()


@dataclass(frozen=True)
class Contender:
    """A program, and the precision of its products. `rank` takes a list from texts to a ranking."""

    name: str
    rank: Callable[[CandidateList], Ranked]
    precision: Precision


def main() -> None:
    """Measure and print."""
    description, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="the results folder of the grid")
    parser.add_argument("dataset", help="a data set that is trained on and ranked")
    parser.add_argument("--arm", default="minilm/start2/default", help="base model, start layer and variant")
    parser.add_argument("--seed", type=int, default=1, help="the seed of the cell")
    parser.add_argument("--queries", type=int, default=100, help="number of test queries, for quality")
    parser.add_argument("--timed", type=int, default=10, help="number of these queries that are timed")
    parser.add_argument("--rounds", type=int, default=7, help="how often each of them is timed")
    parser.add_argument("--candidates", type=int, help="only the best of the first stage")
    parser.add_argument("--words", type=int, help="cut passages after so many words")
    parser.add_argument("--passage-tokens", type=int, help="passage_max_len, instead of that of the training")
    parser.add_argument(
        "--only",
        nargs="+",
        help="only contenders whose names have one of these in them; and the one compared with",
    )
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()

    base_model, start, variant = options.arm.split("/")
    arm = Arm(options.dataset, base_model, int(start.removeprefix("start")), variant)
    tree = ResultsTree(options.results)
    model = tree.arm(arm) / f"seed{options.seed}" / "model"
    run = read_run(tree.run(options.dataset, "test"))
    lists = [
        cut_list(each, options.candidates, options.words)
        for each in read_lists(tree.collection(options.dataset), run, options.queries)
    ]
    with TemporaryDirectory() as folder:
        if options.passage_tokens is not None:
            model = copy_with_length(model, options.passage_tokens, Path(folder) / "model")
        first, *others = our_contenders(
            model, tree.cascade(arm, options.dataset), tree.fusion(arm, options.dataset)
        )
        ours = [first, *(each for each in others if is_wanted(each.name, options.only))]
        programs = peer_programs(model, Path(folder), options.threads, options.only)
        peers = [
            fastest_batches(*program, lists[:SEARCHED_LISTS])
            for program in show_progress(programs, len(programs), "backends, sizes of batches")
        ]
        contenders = [*ours, *peers]
        timed = lists[: options.timed]
        ranked = [
            [contender.rank(each) for each in show_progress(lists, len(lists), contender.name)]
            for contender in contenders
        ]
        seconds = time_in_turns(
            lambda contender, each: contender.rank(each),
            contenders,
            timed,
            "backends",
            options.rounds,
            clock,
        )
        shares = {
            contender.name: time_shares(partial(contender.rank, lists[0]))
            for contender in ours
            if contender.name.endswith("deepest exit")
        }
        reranker = LayerwiseReranker.from_pretrained(model, device="cpu")
    tokens = [count_tokens(reranker, each) for each in lists]
    peaks: dict[Precision, float] = {
        "float32": matrix_peak(torch.float32),
        "bfloat16": matrix_peak(torch.bfloat16),
        "int8": int8_peak(),
    }
    qrels = read_qrels(tree.collection(options.dataset), "test")
    shape = derive_shape(reranker.backbone)
    table = make_table(contenders, lists, ranked, seconds, qrels, shape, tokens, peaks)
    passages = round(np.median([len(each.passages) for each in lists]))
    shortest, median, longest = np.quantile(np.concatenate(tokens), [0.1, 0.5, 0.9]).round().astype(int)
    print(
        f"\n{options.dataset}, {options.arm}: {passages} candidates; {device_name()}, {instruction_sets()}\n"
        f"Tokens of a pair: median {median}; 80% of the pairs have {shortest} to {longest}.\n"
    )
    print(table.to_markdown(index=False, disable_numparse=True))
    reached = [f"{peak / 1e9:.0f} in {precision}" for precision, peak in peaks.items()]
    print(f"\nProducts of large matrices, billion operations a second: {', '.join(reached)}.\n")
    print(pd.DataFrame(shares).T.map("{:.0%}".format).to_markdown())


def is_wanted(name: str, only: Sequence[str] | None) -> bool:
    """Return whether a contender is among those that --only names."""
    return only is None or any(text in name for text in only)


def copy_with_length(model: Path, passage_tokens: int, folder: Path) -> Path:
    """Copy the folder of a reranker, which then reads passages of so many tokens; return the copy."""
    shutil.copytree(model, folder)
    description = read_json(folder / "lwr.json", {"passage_max_len": int})
    write_json(folder / "lwr.json", description | {"passage_max_len": passage_tokens})
    return folder


def count_tokens(reranker: LayerwiseReranker, each: CandidateList) -> np.ndarray:
    """Count the tokens of each pair of a list, int64 [candidates]."""
    rows = reranker.prompt.rows([(each.query, passage) for passage in each.passages])
    return np.array([len(row) for row in rows])


def cut_list(each: CandidateList, candidates: int | None, words: int | None) -> CandidateList:
    """Return the first candidates of a list, and the first words of each; None: all."""
    return replace(
        each,
        doc_ids=each.doc_ids[:candidates],
        passages=[" ".join(passage.split()[:words]) for passage in each.passages[:candidates]],
        first_stage=each.first_stage[:candidates],
    )


# --- Ours ---


def our_contenders(model: Path, cascade: Path, fusion: Path) -> list[Contender]:
    """Return our contenders; the first is the deepest exit in float32."""
    contenders = []
    for precision in precisions():
        reranker = LayerwiseReranker.from_pretrained(model, device="cpu", precision=precision)
        reranker.fusion = read_fusion_of(fusion, reranker.exits)
        deepest = reranker.exits[-1]
        half = min(reranker.exits, key=lambda layer: abs(layer - deepest / 2))
        rank = partial(rank_by_schedule, reranker)
        by_name = {
            "deepest exit": partial(rank, Schedule.single(deepest), False),
            "all exits": partial(rank_by_all, reranker),
            "deepest exit, fused": partial(rank, Schedule.single(deepest), True),
        }
        if half < deepest:
            by_name[f"layer {half}"] = partial(rank, Schedule.single(half), False)
        for chosen in read_chosen_cascades(cascade, reranker.exits).values():
            name = f"`{chosen.schedule}`{', fused' if chosen.fused else ''}"
            by_name[name] = partial(rank, chosen.schedule, chosen.fused)
        if precision != "int8":
            as_loaded = LayerwiseReranker.from_pretrained(model, device="cpu")
            as_loaded.precision = precision  # without set_precision, which replaces layers
            by_name["deepest exit, layers as loaded"] = partial(
                rank_by_schedule, as_loaded, Schedule.single(deepest), False
            )
        contenders += [
            Contender(f"ours, {precision}, {name}", run, precision) for name, run in by_name.items()
        ]
    return contenders


def precisions() -> tuple[Precision, ...]:
    """Return the precisions that a user of this CPU would take."""
    return ("float32", "bfloat16", "int8") if time_ratio(torch.bfloat16) < 1 else ("float32", "int8")


def rank_by_schedule(
    reranker: LayerwiseReranker, schedule: Schedule, fused: bool, each: CandidateList
) -> Ranked:
    """Rank by one exit or by a cascade."""
    scores = each.first_stage if fused or schedule.from_first_stage is not None else None
    pairs = [(each.query, passage) for passage in each.passages]
    rows = reranker.rows_to_read(pairs, schedule, scores)
    ranking = reranker.rank_rows(rows, schedule, first_stage=scores, fused=fused)
    return Ranked(ranking.order.tolist(), ranking.layers.tolist())


def rank_by_all(reranker: LayerwiseReranker, each: CandidateList) -> Ranked:
    """Score at all exits, and rank by the deepest."""
    scores = reranker.score([(each.query, passage) for passage in each.passages], layers="all")[-1]
    return Ranked(order_of(scores))


# --- Peers ---

GraphSession = Callable[[dict[str, np.ndarray]], np.ndarray]
"""Features, int64 [pairs, tokens] each -> float32 [pairs]."""
PairScorer = Callable[[Sequence[tuple[str, str]], int], np.ndarray]
"""Pairs, size of a batch -> float32 [pairs]."""


def peer_programs(
    model: Path, folder: Path, threads: int, only: Sequence[str] | None
) -> list[tuple[str, PairScorer, Precision]]:
    """Export the deepest exit for each program that is wanted; return name, function, and precision of products."""
    from sentence_transformers import CrossEncoder

    deepest = LayerwiseReranker.from_pretrained(model, device="cpu").exits[-1]
    modular = folder / "sentence-transformers"
    export(model, deepest, modular, "sentence-transformers")
    cross_encoder = CrossEncoder(str(modular), device="cpu", activation_fn=torch.nn.Identity())

    def predict(pairs: Sequence[tuple[str, str]], batch_size: int) -> np.ndarray:
        return np.asarray(cross_encoder.predict(list(pairs), batch_size=batch_size, show_progress_bar=False))

    programs: list[tuple[str, PairScorer, Precision]] = [("sentence-transformers, torch", predict, "float32")]
    graphs: tuple[tuple[str, Layout, GraphPrecision, Optimization | None], ...] = (
        ("ONNX, O3", "onnx", "float32", "O3"),
        ("ONNX, int8", "onnx", "int8", None),
        ("ONNX, O3, int8", "onnx", "int8", "O3"),
        ("OpenVINO", "openvino", "float32", None),
        ("OpenVINO, weights in int8", "openvino", "int8", None),
    )
    for name, layout, precision, optimization in graphs:
        if not is_wanted(f"{name}, bfloat16", only):  # the longest name of its sessions
            continue
        out = folder / name
        export(model, deepest, out, layout, precision, optimization)
        tokenizer = AutoTokenizer.from_pretrained(out)
        for session_name, run, products in graph_sessions(name, layout, precision, out, threads):
            programs.append((session_name, partial(score_by_graph, run, tokenizer), products))
    return [program for program in programs if is_wanted(program[0], only)]


def graph_sessions(
    name: str, layout: Layout, precision: GraphPrecision, folder: Path, threads: int
) -> Iterator[tuple[str, GraphSession, Precision]]:
    """Yield name, function, and precision of products of the programs that compute an exported graph."""
    if layout == "onnx":
        yield name, onnx_session(folder, threads), precision
        return
    # OpenVINO makes int8 of activations, too, on a CPU with instructions for it
    in_int8 = precision == "int8" and "vnni" in instruction_sets()
    yield name, openvino_session(folder, threads, "f32"), "int8" if in_int8 else "float32"
    if "bfloat16" in precisions():
        run = openvino_session(folder, threads, "bf16")
        yield f"{name}, bfloat16", run, "int8" if in_int8 else "bfloat16"


def onnx_session(folder: Path, threads: int) -> GraphSession:
    """Return the function that computes a graph by onnxruntime."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.add_session_config_entry(
        "session.intra_op.allow_spinning", "0"
    )  # others need the core in their turn
    session = onnxruntime.InferenceSession(
        folder / "onnx/model.onnx", settings, providers=["CPUExecutionProvider"]
    )
    return lambda features: np.asarray(session.run(["logits"], features)[0])[:, 0]


def openvino_session(folder: Path, threads: int, precision: Literal["f32", "bf16"]) -> GraphSession:
    """Return the function that computes a graph by OpenVINO, what is not in int8 in float32 or bfloat16."""
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    model = openvino.Core().compile_model(folder / "openvino/openvino_model.xml", "CPU", settings)
    return lambda features: np.asarray(model(features)["logits"])[:, 0]


def score_by_graph(
    run: GraphSession,
    tokenizer: Any,
    pairs: Sequence[tuple[str, str]],
    batch_size: int,
) -> np.ndarray:
    """Score pairs in batches of similar length."""
    scores = np.empty(len(pairs), dtype=np.float32)
    by_length = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][1]))
    for start in range(0, len(pairs), batch_size):
        batch = by_length[start : start + batch_size]
        queries, passages = zip(*(pairs[i] for i in batch), strict=True)
        features = tokenizer(
            list(queries), list(passages), padding=True, truncation=True, return_tensors="np"
        )
        scores[batch] = run(dict(features))
    return scores


def fastest_batches(
    name: str, score: PairScorer, precision: Precision, lists: Sequence[CandidateList]
) -> Contender:
    """Return the contender that computes the batch size which takes the least time for some lists."""

    def rank(batch_size: int, each: CandidateList) -> Ranked:
        scores = score([(each.query, passage) for passage in each.passages], batch_size)
        return Ranked(order_of(scores))

    seconds = {}
    for batch_size in BATCH_SIZES:
        rank(batch_size, lists[0])  # warms up
        began = clock()
        for each in lists:
            rank(batch_size, each)
        seconds[batch_size] = clock() - began
    best = min(seconds, key=seconds.__getitem__)
    return Contender(f"{name}, batches of {best}", partial(rank, best), precision)


def order_of(scores: np.ndarray) -> list[int]:
    """Return the indices of scores, highest first, of equal ones the first given."""
    return np.argsort(-scores, kind="stable").tolist()


# --- The table ---


def make_table(
    contenders: Sequence[Contender],
    lists: Sequence[CandidateList],
    ranked: Sequence[Sequence[Ranked]],
    seconds: np.ndarray,
    qrels: dict[str, dict[str, int]],
    shape: BackboneShape,
    tokens: Sequence[np.ndarray],
    peaks: dict[Precision, float],
) -> pd.DataFrame:
    """Return a row per contender.

    Args:
        contenders: The first is compared with.
        lists: The lists; the first of them are timed.
        ranked: What each contender made of each list.
        seconds: [contenders, rounds, timed lists].
        qrels: The judgements.
        shape: The shapes of the backbone.
        tokens: Those of the pairs of each list, each [candidates].
        peaks: Operations per second of products of large matrices.
    """
    timed = range(seconds.shape[2])
    flops = [count_flops(shape, tokens[i]) for i in timed]  # each [layers, candidates]
    judged = {each.query_id: qrels[each.query_id] for each in lists}
    quality = [measure(judged, lists, of_contender) for of_contender in ranked]
    ratios = relative_times(seconds, 0)  # [3, contenders]
    rows = []
    for c, contender in enumerate(contenders):
        differences = quality[c] - quality[0]
        low, high = interval(differences[None])
        computed = [sum_to_depth(*of_list) for of_list in zip(flops, ranked[c], strict=False)]
        reached = np.median(computed / np.median(seconds[c], axis=0))
        rows.append(
            {
                "contender": contender.name,
                "time": f"{ratios[1, c]:.2f} [{ratios[0, c]:.2f}, {ratios[2, c]:.2f}]",
                "ms a list": f"{1000 * np.median(seconds[c]):.1f}",
                MEASURE: f"{quality[c].mean():.3f}",
                "difference": "" if c == 0 else f"{differences.mean():+.3f} [{low:+.3f}, {high:+.3f}]",
                "of the peak": f"{reached / peaks[contender.precision]:.0%}",
            }
        )
    return pd.DataFrame(rows)


def sum_to_depth(flops: np.ndarray, ranked: Ranked) -> float:
    """Return the FLOPs of the blocks that read the candidates. flops: [layers, candidates], up to each layer."""
    if not len(ranked.depth):
        return float(flops[-1].sum())
    up_to = np.concatenate([np.zeros((1, flops.shape[1])), flops])  # the first row: not read
    return float(up_to[np.array(ranked.depth), np.arange(flops.shape[1])].sum())


def measure(
    judged: dict[str, dict[str, int]], lists: Sequence[CandidateList], ranked: Sequence[Ranked]
) -> np.ndarray:
    """Return the measure of each query, float64 [queries], in the order of their ids."""
    run = {
        each.query_id: {each.doc_ids[i]: -float(rank) for rank, i in enumerate(of_list.order)}
        for each, of_list in zip(lists, ranked, strict=True)
    }
    return measures_per_query(judged, run, [MEASURE]).sort_values("query_id")["value"].to_numpy()


def time_shares(run: Callable[[], object], repeats: int = 3) -> dict[str, float]:
    """Return what part of the time of a function of PyTorch each kind of operation takes, by PyTorch's profiler."""
    run()  # warms up
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        began = time.perf_counter()
        for _ in range(repeats):
            run()
        total = time.perf_counter() - began
    seconds: dict[str, float] = dict.fromkeys((*OPERATIONS, "other operations"), 0.0)
    for event in profiled.key_averages():
        kinds = (kind for kind, names in OPERATIONS.items() if event.key.startswith(names))
        seconds[next(kinds, "other operations")] += event.self_cpu_time_total / 1e6
    shares = {kind: of_kind / total for kind, of_kind in seconds.items()}
    return shares | {"the rest": 1 - sum(shares.values())}


def clock() -> float:
    """Return the time in seconds: of the processor with one thread, which other programs do not lengthen."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def matrix_peak(dtype: torch.dtype) -> float:
    """Return the FLOP/s of a product of large matrices: PyTorch's or, if it is faster, that by laid-out weights."""
    states, linear = torch.randn(2048, 1024, dtype=dtype), torch.nn.Linear(1024, 1024, bias=False).eval()
    laid_out = [OneDnnLinear(linear, dtype).eval()] if is_faster(dtype) else []
    products = [*laid_out, linear.to(dtype)]
    with torch.inference_mode():
        seconds = min(_best_seconds(partial(product, states)) for product in products)
    return 2 * 2048 * 1024 * 1024 / seconds


def int8_peak() -> float:
    """Return the operations per second of such a product in int8."""
    integers = torch.randint(0, 255, (2048, 1024), dtype=torch.uint8)
    limit = find_weight_limit()
    packed = torch.ops.onednn.qlinear_prepack(
        torch.randint(-limit, limit + 1, (1024, 1024), dtype=torch.int8), None
    )
    ones, zeros = torch.ones(1024), torch.zeros(1024, dtype=torch.int64)
    return 2 * 2048 * 1024 * 1024 / _best_seconds(lambda: multiply(integers, packed, ones, zeros))


def _best_seconds(run: Callable[[], object], repeats: int = 50) -> float:
    seconds = []
    for _ in range(repeats):
        began = clock()
        run()
        seconds.append(clock() - began)
    return min(seconds)


def instruction_sets() -> str:
    """Name those of the CPU that matter for products of matrices."""
    known = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    flags = Path("/proc/cpuinfo").read_text().split()
    return ", ".join(name for name in known if name in flags)


if __name__ == "__main__":
    main()
