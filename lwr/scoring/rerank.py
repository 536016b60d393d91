"""Files in, rankings out: candidates that somebody found, in the order of one exit or of a cascade.

With the workflow's candidates, budget of tokens, precision and number of threads, and where it scored in one shard, an
exit's run is the workflow's to the byte: the same lists share the same batches. A cascade really lets candidates go,
in a forward pass per query, where the workflow replays recorded scores: that run is the same too, unless two scores
of a query are nearer to each other than rounding, about 1e-6.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lwr.common.errors import BadInput
from lwr.common.hashing import hash_share
from lwr.common.json_lines import decode_lines, read_lines, write_jsonl
from lwr.common.progress import show_progress
from lwr.config.evaluation import ScoringConfig
from lwr.formats.beir import read_corpus_file, read_queries_file
from lwr.formats.training_groups import read_training_groups
from lwr.formats.trec import best_first, read_run, scores_by_rank, write_run
from lwr.model.cascade_schedule import Schedule
from lwr.model.prompt import instruction_of
from lwr.model.reranker import LayerwiseReranker
from lwr.model.storage import stored_exits
from lwr.scoring.score import QueryCandidates, rows_of, score_lists

STDIN = Path("-")


@dataclass(frozen=True)
class RankedPassage:
    """A passage in its place. layer: the last exit that read it; score: a float32, which it had there."""

    doc_id: str
    score: float
    layer: int
    text: str


@dataclass(frozen=True)
class RankedQuery:
    """A query and its passages, best first."""

    query_id: str
    query: str
    hits: list[RankedPassage]


# --- what is ranked ------------------------------------------------------------------------------------


def of_run(run: Path, queries: Path, corpus: Path) -> list[QueryCandidates]:
    """The queries of a TREC run with the texts that it names, from files in BEIR's JSON lines.

    The corpus is streamed: memory holds the run and its passages. Raises BadInput, also where a query or a passage of
    the run is in neither file, with the run's line.
    """
    candidates = read_run(run)
    if not candidates:
        raise BadInput(f"{run}: holds no candidate; write query Q0 passage rank score tag")
    asked = read_queries_file(queries)
    for query_id in candidates:
        if query_id not in asked:
            where = _first_line(run, 0, {query_id})
            raise BadInput(f"{where}: query {query_id!r} is not in {queries}; add it or remove its lines")
    wanted = {doc for ranked in candidates.values() for doc, _ in ranked}
    texts: dict[str, str] = {}
    for passage in read_corpus_file(corpus):
        if passage.doc_id in texts:
            raise BadInput(f"{corpus}: id {passage.doc_id!r} stands twice; remove one or rename it")
        if passage.doc_id in wanted:
            texts[passage.doc_id] = passage.full_text
    if missing := wanted - texts.keys():
        where = _first_line(run, 2, missing)
        raise BadInput(
            f"{where}: this passage, one of {len(missing)}, is not in {corpus}; give the corpus that was searched"
        )
    return [
        QueryCandidates(query, asked[query], [doc for doc, _ in ranked], [texts[doc] for doc, _ in ranked])
        for query, ranked in candidates.items()
    ]


def _first_line(run: Path, column: int, values: set[str]) -> str:
    """`file:line: value` of the first line of a run that has one of the values in a column."""
    found = ((number, line.split()[column]) for number, line in read_lines(run))
    return next(f"{run}:{number}: {value!r}" for number, value in found if value in values)


def of_groups(file: Path) -> list[QueryCandidates]:
    """The queries of FlagEmbedding's training lines, positives and negatives together. Raises BadInput.

    A query's id is the number of its line, a passage's `7-pos-1`, `7-neg-3`: with the line, as equal scores are
    ordered by a hash of the id, which must not favour positives.
    """
    asked = []
    for number, line in enumerate(read_training_groups([file]), 1):
        ids = [f"{number}-{kind}-{i}" for kind in ("pos", "neg") for i, _ in enumerate(line[kind], 1)]
        passages = [*line["pos"], *line["neg"]]
        asked.append(QueryCandidates(str(number), line["query"], ids, passages, instruction_of(line)))
    return asked


def of_passages(query: str, passages: Path) -> list[QueryCandidates]:
    """One query, and a file of passages, one a line; STDIN reads standard input. Ids are line numbers.

    Raises BadInput.
    """
    if not query.strip():
        raise BadInput("--query has no text; write one")
    if passages == STDIN:
        lines, name = decode_lines(sys.stdin.buffer, "standard input"), "standard input"
    else:
        lines, name = read_lines(passages), str(passages)
    numbered = list(lines)
    if not numbered:
        raise BadInput(f"{name}: holds no passage; write one a line")
    return [
        QueryCandidates("1", query, [str(number) for number, _ in numbered], [text for _, text in numbered])
    ]


# --- ranking it ----------------------------------------------------------------------------------------


def find_depth(model: str, depth: Schedule | None, revision: str | None = None) -> Schedule:
    """`depth`, or the deepest exit, found without reading weights. Raises BadInput for a layer without a head."""
    exits = stored_exits(model, revision)
    depth = depth or Schedule((), exits[-1])
    unknown = [layer for layer in depth.layers if layer not in exits]
    if unknown:
        raise BadInput(f"{model}: layers {unknown} have no head; exits are {exits[0]}..{exits[-1]}")
    return depth


def rerank(
    reranker: LayerwiseReranker,
    asked: Sequence[QueryCandidates],
    depth: Schedule,
    settings: ScoringConfig = ScoringConfig(),  # noqa: B008 - frozen
    top_k: int | None = None,
) -> list[RankedQuery]:
    """The queries in the order given, each with its `top_k` best candidates (None: all).

    Equal scores go by `trec.sort_key`'s rule. Those of one exit decrease strictly, as in a run. A cascade's decrease
    within one exit, and who left late stands above who left early; it takes each query's candidates in one batch,
    whatever the budget of tokens.
    """
    ranked = (_cascaded if depth.keep else _by_exit)(reranker, asked, depth, settings)
    if len(asked) > 1:
        ranked = show_progress(ranked, len(asked), "rerank")
    return [RankedQuery(query.query_id, query.query, hits[:top_k]) for query, hits in ranked]


def _by_exit(
    reranker: LayerwiseReranker, asked: Sequence[QueryCandidates], depth: Schedule, settings: ScoringConfig
) -> Iterator[tuple[QueryCandidates, list[RankedPassage]]]:
    for some, _, (scores,) in score_lists(reranker, asked, [depth.last], settings):
        ends = np.cumsum([len(query.doc_ids) for query in some])
        for query, of_query in zip(some, np.split(scores, ends[:-1]), strict=True):
            texts = dict(zip(query.doc_ids, query.passages, strict=True))
            ranked = best_first(zip(query.doc_ids, of_query, strict=True))
            yield query, [RankedPassage(doc, score, depth.last, texts[doc]) for doc, score in ranked]


def _cascaded(
    reranker: LayerwiseReranker, asked: Sequence[QueryCandidates], depth: Schedule, settings: ScoringConfig
) -> Iterator[tuple[QueryCandidates, list[RankedPassage]]]:
    for query in asked:
        # of equals rank_rows takes the first given: so they are given in the order in which ties are broken
        pairs = sorted(zip(query.doc_ids, query.passages, strict=True), key=lambda pair: hash_share(pair[0]))
        docs, texts = map(list, zip(*pairs, strict=True))
        rows = rows_of(
            reranker.prompt, [QueryCandidates(query.query_id, query.query, docs, texts, query.instruction)]
        )
        ranking = reranker.rank_rows(rows, depth, settings.tokens_per_batch, settings.precision)
        yield (
            query,
            [
                RankedPassage(docs[i], float(ranking.scores[i]), int(ranking.layers[i]), texts[i])
                for i in ranking.order.tolist()
            ],
        )


# --- what is written -----------------------------------------------------------------------------------


def is_jsonl(out: Path) -> bool:
    return out.name.endswith((".jsonl", ".jsonl.gz"))


def tag_of(depth: Schedule) -> str:
    """How the workflow tags a run."""
    return "cascade" if depth.keep else f"layer_{depth.last}"


def check_out(out: Path, tag: str | None) -> None:
    """Raises BadInput for what can't be written, before anything is ranked."""
    if out.is_dir():
        raise BadInput(f"--out {out}: a folder; name a file in it")
    if out.suffix == ".gz" and not is_jsonl(out):
        raise BadInput(f"--out {out}: runs are not gzipped; leave out .gz, or write .jsonl.gz")
    if tag is not None and tag.split() != [tag]:
        raise BadInput(f"--tag {tag!r} is empty or holds whitespace, no tag for a run; write one word")


def write(out: Path, ranked: Sequence[RankedQuery], depth: Schedule, tag: str | None = None) -> None:
    """JSON lines where the name says so, queries as they came; else a TREC run, queries sorted by their ids, as the
    workflow writes its own. tag: None takes `tag_of`."""
    if is_jsonl(out):
        write_jsonl(out, (_json(query) for query in ranked))
    else:
        run = {query.query_id: _run_of(query, depth) for query in ranked}
        write_run(out, dict(sorted(run.items())), tag or tag_of(depth))


def _run_of(query: RankedQuery, depth: Schedule) -> list[tuple[str, float]]:
    if depth.keep:
        return scores_by_rank(hit.doc_id for hit in query.hits)
    return [(hit.doc_id, hit.score) for hit in query.hits]


def _json(query: RankedQuery) -> dict[str, object]:
    results = [
        {"rank": rank, "doc_id": hit.doc_id, "score": hit.score, "layer": hit.layer, "text": hit.text}
        for rank, hit in enumerate(query.hits, 1)
    ]
    return {"query_id": query.query_id, "query": query.query, "results": results}


def show(query: RankedQuery) -> None:
    """Print one query's ranking: a table as wide as the terminal; in a pipe rank, score, layer and passage in full,
    with tabs between."""
    rows = [
        (str(rank), f"{hit.score:.4f}", str(hit.layer), _printable(hit.text))
        for rank, hit in enumerate(query.hits, 1)
    ]
    if not sys.stdout.isatty():
        sys.stdout.writelines("\t".join(row) + "\n" for row in rows)
        return
    Console().print(_table(rows))


def _table(rows: Iterable[tuple[str, str, str, str]]) -> Table:
    table = Table()
    for name in ("rank", "score", "layer"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("passage", no_wrap=True, overflow="ellipsis")
    for row in rows:
        table.add_row(*map(Text, row))  # Text: a passage's brackets are no markup
    return table


def _printable(text: str) -> str:
    """On one line, without control characters, which a terminal would obey."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
