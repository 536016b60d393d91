"""Whether a results tree is what the steps wrote: every artefact read, and held against what it was made of.

The tree's paths are those of workflow/rules/common.smk. Model folders record a checksum of each of their files,
tables and decisions those of what they were made of; what records none of its own (runs, tables for people) is held
against what it follows from.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import pandas as pd

from lwr.common.errors import BadInput, first_line
from lwr.common.exits import ARM_COLUMNS, exits_in
from lwr.common.hashing import sha256
from lwr.common.json_lines import read_json, read_jsonl
from lwr.evaluation.arm_files import read_cascades, read_chosen_schedule, read_costs
from lwr.evaluation.measures import rankings, read_measures
from lwr.formats import parquet
from lwr.formats.beir import (
    Qrels,
    answerable_queries,
    check_unique_ids,
    read_corpus,
    read_qrels,
    read_queries,
)
from lwr.formats.checkpoint import check_weights
from lwr.formats.training_groups import read_training_groups
from lwr.formats.trec import read_run
from lwr.verify import leftovers
from lwr.verify.leftovers import AGAIN, TABLES


@dataclass
class Verdict:
    """What is wrong and what is only left over, a line each; files: how many were read."""

    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files: int = 0


def verify(results: Path) -> Verdict:
    """Read every artefact of a results tree. Raises BadInput where it holds no results."""
    if not any((results / name).is_dir() for name in ("collections", "cells", "tables")):
        raise BadInput(f"{results}: holds no collections, cells or tables; give the folder that a grid wrote")
    return _Tree(results).verdict()


class _Tree:
    def __init__(self, results: Path):
        self.results, self.said = results, Verdict(notes=list(leftovers.leftovers(results)))
        self.digest = cache(sha256)
        self.scored = lru_cache(1)(_scores)  # scores, measures and runs look at one file in turn
        self.means: dict[tuple, dict[int, float]] = {}
        """(*arm, exit, column of layers.csv) -> seed -> mean over queries."""

    def verdict(self) -> Verdict:
        for folder in _folders(self.results, "collections/*"):
            self.check(folder, self.collection)
        for file in _there(self.results, "base_models/*.json"):
            self.check(
                file, lambda file: read_json(file, {"model": str, "layers": int, "fingerprint": str}) and ()
            )
        for arm in _folders(self.results, "cells/*/*/start*/*"):
            self.arm(arm)
        self.check(self.results / "tables/layers.csv", lambda path: leftovers.means(path, self.means))
        arms = "cells/*/*/start*/*"
        for name in TABLES[1:]:
            look: Any = leftovers.table
            if name == "cost.csv":
                look = partial(self.follows, pattern=f"{arms}/cost/*.json", read=read_costs)
            if name == "cascades.csv":
                look = partial(self.follows, pattern=f"{arms}/cascade/*.json", read=read_cascades)
            self.check(self.results / "tables" / name, look)
        for file in _there(self.results, "figures/*"):
            self.check(file, leftovers.figure)
        self.check(self.results / "report.html", leftovers.page)
        return self.said

    def check(self, path: Path, look: Callable[[Path], Any]) -> Any:
        """look: yields what is wrong with `path`, or raises it."""
        if not path.exists():
            self.said.faults.append(f"{path}: missing; run the workflow again")
            return
        self.said.files += 1 if path.is_file() else sum(file.is_file() for file in path.rglob("*"))
        try:
            for text in look(path) or ():
                self.said.faults.append(text if str(path) in text else f"{path}: {text}")
        except (ValueError, OSError, KeyError, TypeError) as error:
            text = first_line(error)
            text = f"no {text}" if isinstance(error, KeyError) else text
            self.said.faults.append(text if str(path) in text else f"{path}: {text}; {AGAIN}")

    def made_of(self, recorded: Mapping[str, Any], files: Mapping[str, Path]) -> Iterator[str]:
        for name, file in files.items():
            if name not in recorded:
                yield f"does not say of which {name} it was made; {AGAIN}"
            elif not file.is_file():
                yield f"was made of {file}, which is missing; run the workflow again"
            elif recorded[name] != self.digest(file):
                yield f"was made of another {file} than is there now; {AGAIN}, or put that file back"

    # --- collections -----------------------------------------------------------------------------------

    def collection(self, folder: Path) -> Iterator[str]:
        groups = folder / "groups.jsonl"
        if groups.is_file() and not (folder / "corpus.jsonl").exists() and not (folder / "qrels").exists():
            for _ in read_training_groups([groups]):  # adopted ones stand alone
                pass
            return
        queries = read_queries(folder)
        qrels = {split: read_qrels(folder, split, queries) for split in _splits(folder)}
        named = {split: {doc for docs in judged.values() for doc in docs} for split, judged in qrels.items()}
        for path in _there(folder, "runs/*.trec"):
            run = read_run(path)
            if unknown := run.keys() - qrels.get(path.stem, {}).keys():
                yield f"{path}: query {min(unknown)!r} is not judged for {path.stem}; {AGAIN}"
            named.setdefault(path.stem, set()).update(doc for docs in run.values() for doc, _ in docs)
        if groups.is_file():
            yield from _groups(groups, qrels.get("train", {}), named.setdefault("train", set()))
        hashes = array("q")
        for passage in read_corpus(folder):
            hashes.append(hash(passage.doc_id))
            for split in named if passage.split is None else [passage.split]:
                named.get(split, set()).discard(passage.doc_id)
        check_unique_ids(folder / "corpus.jsonl", hashes)
        for split, missing in named.items():
            if missing:
                yield f"{folder}/corpus.jsonl: no passage {min(missing)!r}, which {split} names; {AGAIN}"

    # --- cells -----------------------------------------------------------------------------------------

    def arm(self, arm: Path) -> None:
        seeds = _folders(arm, "seed*")
        of_seeds = [f"seed*/{what}/*" for what in ("scores", "measures", "runs")]
        places = [place for pattern in ("cascade/*", "cost/*", *of_seeds) for place in _there(arm, pattern)]
        tested = sorted({place.stem if place.is_file() else place.name for place in places})
        if not tested:
            self.said.faults.append(f"{arm}: no scores, measures or cascades; run the workflow again")
        for seed in seeds:
            self.check(seed / "model", lambda model: self.model(model, arm, tested))
        for name in tested:
            decided, cost = arm / f"cascade/{name}.json", arm / f"cost/{name}.json"
            self.check(decided, lambda path, name=name: self.cascade(path, name, seeds))
            self.check(cost, lambda path, name=name, decided=decided: self.cost(path, name, decided, seeds))
            for seed in seeds:
                for split in ("dev", "test"):
                    scores, at = seed / f"scores/{name}/{split}.parquet", f"{name}/{split}"
                    self.check(scores, lambda path, at=at, seed=seed: self.scores(path, seed, at))
                    self.check(
                        seed / f"measures/{at}.parquet",
                        lambda path, scores=scores, at=at, decided=decided: self.measures(
                            path, scores, at, decided
                        ),
                    )
                    self.check(seed / f"runs/{at}", lambda path, scores=scores: self.runs(path, scores))

    def model(self, model: Path, arm: Path, tested: list[str]) -> Iterator[str]:
        check_weights(model)
        came = read_json(model / "provenance.json", {"files": dict, "groups_sha256": str, "dev_sha256": dict})
        for name, recorded in came["files"].items():
            if not (model / name).is_file():
                yield f"{model / name}: missing; remove the model and run the workflow again"
            elif self.digest(model / name) != recorded:
                yield f"{model / name}: not what training wrote; put it back, or remove the model and train again"
        there = {str(f.relative_to(model)) for f in model.rglob("*") if f.is_file() and f.name[0] != "."}
        for name in sorted(there - came["files"].keys() - {"provenance.json"}):
            yield f"{model / name}: no file that training wrote; remove it"
        read_json(model / "lwr.json", {"start_layer": int, "depth": int})
        for _ in read_jsonl(model / "training.jsonl", {}):
            pass
        dataset, base = arm.parts[-4], arm.parts[-3]
        groups = self.results / f"collections/{dataset}/groups.jsonl"
        yield from self.made_of({"groups": came["groups_sha256"]}, {"groups": groups})
        looks = [dict(self.texts(name, "dev"), qrels=self.qrels(name, "dev")) for name in tested]
        if came["dev_sha256"] and all(list(self.made_of(came["dev_sha256"], look)) for look in looks):
            yield f"looked at another dev collection than is there now; {AGAIN}"
        described = read_json(self.results / f"base_models/{base}.json", {"fingerprint": str})
        if came["base_fingerprint"] != described["fingerprint"]:
            yield f"was trained on another {base} than base_models/{base}.json describes; {AGAIN}"

    def texts(self, name: str, split: str) -> dict[str, Path]:
        folder = self.results / "collections" / name
        texts = {part: folder / f"{part}.jsonl" for part in ("corpus", "queries")}
        return {"run": folder / f"runs/{split}.trec", **texts}

    def qrels(self, name: str, split: str) -> Path:
        return self.results / f"collections/{name}/qrels/{split}.tsv"

    def scores(self, path: Path, seed: Path, at: str) -> Iterator[str]:
        table, texts = self.scored(path), self.texts(*at.split("/"))
        weights = {f"model/{file.name}": file for file in sorted((seed / "model").glob("*.safetensors"))}
        yield from self.made_of(parquet.read_inputs(path), texts | weights)
        about = read_json(seed / "model/lwr.json", {"start_layer": int, "depth": int})
        exits = [f"layer_{k}" for k in range(about["start_layer"], about["depth"] + 1)]
        if exits_in(table) != ["first_stage", *exits]:
            yield f"has the exits {', '.join(exits_in(table)[1:])}, the model {', '.join(exits)}; {AGAIN}"
        listed = [(query, *pair) for query, ranked in read_run(texts["run"]).items() for pair in ranked]
        if listed != list(table[["query_id", "doc_id", "first_stage"]].itertuples(index=False, name=None)):
            yield f"holds other candidates than {texts['run']}; {AGAIN}"

    def measures(self, path: Path, scores: Path, at: str, decided: Path) -> Iterator[str]:
        name, split = at.split("/")
        table, qrels = read_measures([path]), self.qrels(name, split)
        files = {"scores": scores, "cascade": decided, "qrels": qrels}
        yield from self.made_of(parquet.read_inputs(path), files)
        exits = {*exits_in(self.scored(scores)), *(["cascade"] if read_chosen_schedule(decided) else [])}
        judged = set(answerable_queries(read_qrels(qrels.parent.parent, split)))
        for (exit, measure), of_exit in table.groupby(["exit", "measure"], sort=False):
            queries = of_exit["query_id"].tolist()
            if len(queries) != len(set(queries)) or (measure != "ties" and set(queries) != judged):
                yield f"{measure} of {exit} is of {len(queries)} queries, but {len(judged)} are judged; {AGAIN}"
            key = (*of_exit[ARM_COLUMNS].iloc[0].tolist(), exit, f"{'dev ' * (split == 'dev')}{measure}")
            self.means.setdefault(key, {})[int(of_exit["seed"].iloc[0])] = float(of_exit["value"].mean())
        if set(table["exit"]) != exits:
            yield f"measures {', '.join(sorted(set(table['exit'])))}, but {scores} has {', '.join(sorted(exits))}"

    def runs(self, folder: Path, scores: Path) -> Iterator[str]:
        table = self.scored(scores)
        for exit in exits_in(table):
            run = {
                query: [doc for doc, _ in ranked]
                for query, ranked in read_run(folder / f"{exit}.trec").items()
            }
            if run != {query: list(ranked) for query, ranked in rankings(table, exit).items()}:
                yield f"{folder / exit}.trec: ranks otherwise than {exit} of {scores}; {AGAIN}"
        if (folder / "cascade.trec").is_file():
            read_run(folder / "cascade.trec")

    def cascade(self, path: Path, name: str, seeds: list[Path]) -> Iterator[str]:
        decided = read_json(path, {"chosen": str, "deepest": str, "schedules": list, "inputs": dict})
        read_chosen_schedule(path)
        for split in ("dev", "test"):
            scores = {self.digest(seed / f"scores/{name}/{split}.parquet") for seed in seeds}
            if set(decided["inputs"][split]) != scores:
                yield f"was chosen from other scores of {split} than are there now; {AGAIN}"
            yield from self.made_of(decided["inputs"]["qrels"], {split: self.qrels(name, split)})

    def cost(self, path: Path, name: str, decided: Path, seeds: list[Path]) -> Iterator[str]:
        about = read_json(path, {"exits": list, "inputs": dict})
        yield from self.made_of(about["inputs"], {"cascade": decided})
        if about["inputs"]["scores"] not in {self.digest(s / f"scores/{name}/test.parquet") for s in seeds}:
            yield f"was measured on other scores of test than are there now; {AGAIN}"

    # --- what people read ------------------------------------------------------------------------------

    def follows(self, path: Path, pattern: str, read: Callable[[list[Path]], pd.DataFrame]) -> Iterator[str]:
        """A table that holds the same rows, in whatever order, as files of the cells."""
        yield from leftovers.table(path)
        rows = read(_there(self.results, pattern)).to_csv(index=False, float_format="%.6f")
        if sorted(rows.splitlines()) != sorted(path.read_text(encoding="utf-8").splitlines()):
            yield f"holds other rows than {self.results / pattern}; {AGAIN}"


# --- one artefact --------------------------------------------------------------------------------------


def _there(root: Path, pattern: str) -> list[Path]:
    """What a step finished: no drafts."""
    return sorted(path for path in root.glob(pattern) if not path.name.startswith("."))


def _folders(root: Path, pattern: str) -> list[Path]:
    return [path for path in _there(root, pattern) if path.is_dir()]


def _splits(folder: Path) -> list[str]:
    there = {file.stem for file in folder.glob("qrels/*.tsv")}
    if "test" not in there:
        raise BadInput(f"{folder}/qrels/test.tsv: missing; run the workflow again")
    return sorted(there)


def _groups(path: Path, qrels: Qrels, named: set[str]) -> Iterator[str]:
    for number, line in enumerate(read_training_groups([path]), 1):
        query, positive, negative = line["query_id"], line["pos_id"], line["neg_id"]
        named.update(positive, negative)
        relevant = {doc for doc, grade in qrels.get(query, {}).items() if grade > 0}
        if not set(positive) <= relevant or set(negative) & relevant:
            yield f"{path}:{number}: query {query!r} is judged otherwise in qrels/train.tsv; {AGAIN}"


def _scores(path: Path) -> pd.DataFrame:
    return parquet.read(path, ["query_id", "doc_id", "tokens", "first_stage"])
