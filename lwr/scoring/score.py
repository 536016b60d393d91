"""Score all candidates of a split at all exits, in one forward pass per batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from lwr.common.atomic import atomic
from lwr.common.errors import BadInput
from lwr.common.exits import FIRST_STAGE, compressed_name, exit_name
from lwr.common.hashing import sha256
from lwr.common.progress import Progress, log
from lwr.config.evaluation import ScoringConfig
from lwr.formats import parquet
from lwr.formats.beir import Split, read_candidate_texts, read_queries
from lwr.formats.trec import Run, read_run
from lwr.model.cascade_schedule import Compression
from lwr.model.reranker import LayerwiseReranker
from lwr.scoring.query_candidates import (
    QueryCandidates,
    check_finite,
    check_windows,
    join_texts,
    log_cut_queries,
    score_in_chunks,
)


def score(
    model: Path,
    collection: Path,
    split: Split,
    run: Path,
    settings: ScoringConfig,
    out: Path,
    shard: str = "1/1",
    label: str = "score",
) -> None:
    """Write the scores of a run's candidates to Parquet, one row per candidate, in the order of the run.

    The columns are query_id, doc_id, tokens (int32, length of the pair as the backbone reads it), cut (bool, whether
    the passage goes on behind what is read of it), first_stage (float64), and layer_k (float32) for every exit k.
    Memory holds the texts of the candidates, not the corpus.

    With `settings.windows`, tokens are those of all windows of the pair, and there are also windows (int32, how many it
    has) and last_tokens (int32, length of the last one; the others are equally long).

    With `settings.widths`, there are also passage_tokens (int32, how many of the tokens compression averages), and for
    each width (layer, ratio) and every deeper exit k the scores of compressed passages, such as
    layer_6_compressed_3_by_2 (float32).

    Args:
        model: Folder that `lwr train` wrote.
        collection: Folder in BEIR layout.
        split: The split that the run's queries belong to.
        run: TREC run with the candidates.
        settings: Token budget, precision, widths, and windows.
        out: The file to write.
        shard: `K/N` scores only every N-th query, starting at the K-th.
        label: Prefix of the progress lines.

    Raises:
        BadInput: Corpus, queries and run do not fit together; or windows overlap by as many tokens as they have.
        UnsupportedBackbone, ValueError: The model's passages cannot be compressed, or not after these layers.
        FloatingPointError: A score is not finite.
    """
    all_candidates = read_run(run)
    if not all_candidates:
        raise BadInput(f"{run}: has no candidates; retrieve again")
    candidates = select_shard(all_candidates, shard)
    query_texts = read_queries(collection)
    if unknown := candidates.keys() - query_texts.keys():
        raise BadInput(f"{run}: query {min(unknown)!r} is not in {collection}/queries.jsonl; retrieve again")
    texts = read_candidate_texts(collection, split, candidates)
    queries = join_texts(candidates, query_texts, texts)
    reranker = LayerwiseReranker.from_pretrained(model, precision=settings.precision)
    inputs = _input_digests(model, collection, run) | {"shard": shard}
    compressions = [Compression.at(layer, ratio) for layer, ratio in settings.widths]
    for compression in compressions:
        reranker.check_compression(compression)
    check_windows(reranker.prompt, queries, settings.windows)
    log_cut_queries(reranker.prompt, queries, label)
    schema = parquet.add_inputs(_schema(reranker.exits, compressions, settings.windows is not None), inputs)
    pairs = sum(map(len, candidates.values())) * (1 + len(compressions))
    with (
        atomic(out) as draft,
        parquet.open_writer(draft, schema) as writer,
        Progress(label, pairs, "pairs") as progress,
    ):
        cut, rows = 0, 0
        for table in _tables(reranker, queries, candidates, settings, compressions, progress.advance):
            writer.write_table(table.cast(schema))
            cut, rows = cut + sum(table["cut"].to_pylist()), rows + len(table)
    log(f"{label}: {reranker.prompt.describe_cut(cut, rows, settings.windows)}")


def _input_digests(model: Path, collection: Path, run: Path) -> dict[str, str]:
    """Return the sha256 of every file that scores depend on: the model's weights, the texts and the candidates."""
    files = {"run": run, "corpus": collection / "corpus.jsonl", "queries": collection / "queries.jsonl"}
    files |= {f"model/{file.name}": file for file in sorted(model.glob("*.safetensors"))}
    return {name: sha256(file) for name, file in files.items()}


def select_shard(candidates: Run, shard: str) -> Run:
    """Return the queries of the shard `K/N`: every N-th, starting at the K-th. Raises ValueError."""
    try:
        number, count = (int(part) for part in shard.split("/"))
    except ValueError:
        number = count = 0
    if not 1 <= number <= count:
        raise ValueError(f"shard {shard!r}: write K/N with K in 1..N, such as 1/4")
    return dict(list(candidates.items())[number - 1 :: count])


def _schema(exits: Sequence[int], compressions: Sequence[Compression], has_windows: bool) -> pa.Schema:
    pair = [("query_id", pa.string()), ("doc_id", pa.string()), ("tokens", pa.int32()), ("cut", pa.bool_())]
    if has_windows:
        pair += [("windows", pa.int32()), ("last_tokens", pa.int32())]
    if compressions:
        pair.append(("passage_tokens", pa.int32()))
    names = [
        *map(exit_name, exits),
        *(compressed_name(layer, each.steps) for each in compressions for layer in each.exits_after(exits)),
    ]
    return pa.schema([*pair, (FIRST_STAGE, pa.float64()), *((name, pa.float32()) for name in names)])


def _tables(
    reranker: LayerwiseReranker,
    queries: Sequence[QueryCandidates],
    candidates: Run,
    settings: ScoringConfig,
    compressions: Sequence[Compression],
    on_scored: Callable[[int], object],
) -> Iterator[pa.Table]:
    """Yield a table of scores per chunk of queries."""
    has_windows = settings.windows is not None
    for chunk, rows, scores in score_in_chunks(reranker, queries, reranker.exits, settings, on_scored):
        query_ids = [query.query_id for query in chunk for _ in query.doc_ids]
        doc_ids = [doc_id for query in chunk for doc_id in query.doc_ids]
        first_stage = [score for query in chunk for _, score in candidates[query.query_id]]
        compressed: list[np.ndarray] = []  # float32 [pairs] each
        for compression in compressions:
            layers = compression.exits_after(reranker.exits)
            # [layers, pairs]
            of_width = reranker.score_rows(rows, layers, settings.tokens_per_batch, on_scored, compression)
            check_finite(of_width, chunk, layers)
            compressed += list(of_width)
        lengths = [[row.tokens_of_windows for row in rows], [row.is_cut for row in rows]]
        if has_windows:
            lengths += [[len(row.windows) for row in rows], [len(row.windows[-1]) for row in rows]]
        if compressions:
            lengths.append([sum(window.passage_tokens for window in row.windows) for row in rows])
        columns = [query_ids, doc_ids, *lengths, first_stage, *scores, *compressed]
        yield pa.table(columns, schema=_schema(reranker.exits, compressions, has_windows))
