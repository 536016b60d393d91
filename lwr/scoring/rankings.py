"""Write rankings: as a TREC run, as JSON lines, or on the screen."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lwr.common.errors import BadInput
from lwr.common.exits import CASCADE, fused_name
from lwr.common.json_lines import write_jsonl
from lwr.formats.trec import scores_by_rank, write_run
from lwr.model.cascade_schedule import Schedule
from lwr.scoring.rerank import RankedQuery


def is_jsonl(path: Path) -> bool:
    """Return whether a path's name asks for JSON lines, gzipped or not."""
    return path.name.lower().endswith((".jsonl", ".jsonl.gz"))


def default_tag(schedule: Schedule, fused: bool = False) -> str:
    """Return the tag that the workflow gives to runs of a schedule."""
    if schedule.keep:
        return CASCADE
    return fused_name(schedule.last, schedule.steps) if fused else schedule.exit_at(schedule.last)


def check_output(out: Path, tag: str | None) -> None:
    """Check, before anything is scored, that rankings can be written.

    Raises:
        BadInput: `out` is a folder, standard output, or would be a gzipped run, or `tag` is not a single word.
    """
    if out == Path("-"):
        raise BadInput("--out -: name a file; without --out, the ranking of a --query is printed")
    if out.is_dir():
        raise BadInput(f"--out {out}: a folder; name a file in it")
    if out.suffix == ".gz" and not is_jsonl(out):
        raise BadInput(f"--out {out}: runs are not gzipped; leave out .gz, or write .jsonl.gz")
    if tag is not None and tag.split() != [tag]:
        raise BadInput(f"--tag {tag!r} is empty or contains whitespace; write one word")


def write_rankings(
    out: Path,
    ranked: Sequence[RankedQuery],
    schedule: Schedule,
    tag: str | None = None,
    fused: bool = False,
) -> None:
    """Write JSON lines if the name of `out` ends so, otherwise a TREC run.

    JSON lines keep the order of the queries; a run is sorted by query id, like the runs of the workflow.

    Args:
        out: The file to write.
        ranked: The rankings.
        schedule: The exit or the cascade that ranked them.
        tag: Tag of the run; None takes `default_tag`.
        fused: Whether scores are fused.
    """
    if is_jsonl(out):
        write_jsonl(out, (_json(query) for query in ranked))
    else:
        run = {query.query_id: _scored_ids(query, schedule) for query in ranked}
        write_run(out, dict(sorted(run.items())), tag or default_tag(schedule, fused))


def _scored_ids(query: RankedQuery, schedule: Schedule) -> list[tuple[str, float]]:
    if schedule.keep:
        return scores_by_rank(passage.doc_id for passage in query.passages)
    return [(passage.doc_id, passage.score) for passage in query.passages]


def _json(query: RankedQuery) -> dict[str, object]:
    results = [
        {
            "rank": rank,
            "doc_id": passage.doc_id,
            "score": passage.score,
            "layer": passage.layer,
            "text": passage.text,
        }
        for rank, passage in enumerate(query.passages, start=1)
    ]
    return {"query_id": query.query_id, "query": query.query, "results": results}


def print_ranking(query: RankedQuery) -> None:
    """Print one query's ranking.

    A terminal shows a table of its width. A pipe receives rank, score, layer and the complete passage, separated by
    tabs.
    """
    rows = [
        (str(rank), f"{passage.score:.4f}", str(passage.layer), _printable(passage.text))
        for rank, passage in enumerate(query.passages, start=1)
    ]
    if sys.stdout.isatty():
        Console().print(_table(rows))
    else:
        sys.stdout.writelines("\t".join(row) + "\n" for row in rows)


def _table(rows: Iterable[tuple[str, str, str, str]]) -> Table:
    table = Table()
    for name in ("rank", "score", "layer"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("passage", no_wrap=True, overflow="ellipsis")
    for row in rows:
        table.add_row(*map(Text, row))  # Text: rich would read the brackets of a str as markup
    return table


def _printable(text: str) -> str:
    """Put a text on one line and remove control characters, which a terminal would execute."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
