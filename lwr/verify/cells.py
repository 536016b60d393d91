"""Check what the steps wrote for each arm and cell: models, scores, cascades, costs, measures and runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from lwr.common.exits import CASCADE, FIRST_STAGE, Arm, Cell, exit_name, exits_in
from lwr.common.json_lines import read_json, read_jsonl
from lwr.common.results_tree import ResultsTree, cell_of_model
from lwr.evaluation.arm_files import read_chosen_schedule
from lwr.evaluation.measures import rankings, read_measures
from lwr.formats import parquet
from lwr.formats.beir import Split, answerable_queries, read_qrels
from lwr.formats.checkpoint import check_weights
from lwr.formats.trec import read_run
from lwr.verify.tables import LayerMeans
from lwr.verify.verdict import REMAKE, Checksums, Verdict

RANKED_SPLITS: tuple[Split, ...] = ("dev", "test")


@dataclass(frozen=True)
class ScoredSplit:
    """The scores that a cell gave to a split of a data set, and the files that follow from them."""

    tree: ResultsTree
    cell: Cell
    tested: str
    split: Split

    @property
    def scores(self) -> Path:
        """Return the Parquet file of scores."""
        return self.tree.scores(self.cell, self.tested, self.split)

    @property
    def measures(self) -> Path:
        """Return the Parquet file of measures."""
        return self.tree.measures(self.cell, self.tested, self.split)

    @property
    def runs(self) -> Path:
        """Return the folder of runs."""
        return self.tree.runs(self.cell, self.tested, self.split)

    @property
    def cascade(self) -> Path:
        """Return the JSON file with the cascade chosen for the arm."""
        return self.tree.cascade(self.cell, self.tested)

    @property
    def qrels(self) -> Path:
        """Return the judgements of the split."""
        return self.tree.qrels(self.tested, self.split)

    @property
    def first_stage(self) -> Path:
        """Return the run whose candidates were scored."""
        return self.tree.run(self.tested, self.split)

    @cached_property
    def table(self) -> pd.DataFrame:
        """Read the scores, once for the checks of scores, measures and runs."""
        return parquet.read(self.scores, ["query_id", "doc_id", "tokens", FIRST_STAGE])


def check_cells(tree: ResultsTree, checksums: Checksums, means: LayerMeans, verdict: Verdict) -> None:
    """Check every arm and cell, and collect the means of their measures in `means`."""
    for arm in tree.arms_on_disk():
        cells = tree.cells_on_disk(arm)
        tested = _tested_datasets(tree, arm, cells)
        if not tested:
            verdict.faults.append(f"{tree.arm(arm)}: no scores, measures or cascades; run the workflow again")
        for cell in cells:
            verdict.check(tree.model(cell), _model_faults(tree, cell, tested, checksums))
        for name in tested:
            verdict.check(tree.cascade(arm, name), _cascade_faults(tree, arm, cells, name, checksums))
            verdict.check(tree.cost(arm, name), _cost_faults(tree, arm, cells, name, checksums))
            for cell in cells:
                for split in RANKED_SPLITS:
                    scored = ScoredSplit(tree, cell, name, split)
                    verdict.check(scored.scores, _score_faults(scored, checksums))
                    verdict.check(scored.measures, _measure_faults(scored, checksums, means))
                    verdict.check(scored.runs, _run_faults(scored))


def _tested_datasets(tree: ResultsTree, arm: Arm, cells: Sequence[Cell]) -> list[str]:
    """Return the data sets that anything was written about."""
    files = tree.existing(tree.cascade(arm, "*")) + tree.existing(tree.cost(arm, "*"))
    tested = {file.stem for file in files}
    for cell in cells:
        for path in (tree.scores, tree.measures, tree.runs):
            tested |= {folder.name for folder in tree.existing(path(cell, "*", "*").parent)}
    return sorted(tested)


def _model_faults(
    tree: ResultsTree, folder_cell: Cell, tested: Sequence[str], checksums: Checksums
) -> Iterator[str]:
    model = tree.model(folder_cell)
    check_weights(model)
    provenance = read_json(
        model / "provenance.json", {"files": dict, "groups_sha256": str, "dev_sha256": dict}
    )
    for name, recorded in provenance["files"].items():
        if not (model / name).is_file():
            yield f"{model / name}: missing; remove the model and run the workflow again"
        elif checksums.sha256(model / name) != recorded:
            yield f"{model / name}: not what training wrote; put it back, or remove the model and train again"
    found = {str(f.relative_to(model)) for f in model.rglob("*") if f.is_file() and f.name[0] != "."}
    for name in sorted(found - provenance["files"].keys() - {"provenance.json"}):
        yield f"{model / name}: not a file that training wrote; remove it"
    read_json(model / "lwr.json", {"start_layer": int, "depth": int})
    for _ in read_jsonl(model / "training.jsonl", {}):
        pass

    cell = cell_of_model(model)
    if cell != folder_cell:
        yield f"was trained for {tree.cell(cell)}; {REMAKE}"
    yield from checksums.changed_inputs(
        {"groups": provenance["groups_sha256"]}, {"groups": tree.groups(cell.trained_on)}
    )
    dev_inputs = [{**_ranked_inputs(tree, name, "dev"), "qrels": tree.qrels(name, "dev")} for name in tested]
    recorded_dev = provenance["dev_sha256"]
    if recorded_dev and all(list(checksums.changed_inputs(recorded_dev, inputs)) for inputs in dev_inputs):
        yield f"was evaluated on another dev collection than is there now; {REMAKE}"
    described = read_json(tree.base_model(cell.base_model), {"fingerprint": str})
    if provenance["base_fingerprint"] != described["fingerprint"]:
        yield (
            f"was trained on another {cell.base_model} than {tree.base_model(cell.base_model)} describes; {REMAKE}"
        )


def _ranked_inputs(tree: ResultsTree, tested: str, split: Split) -> dict[str, Path]:
    """Return the files that scores are made of, apart from the model."""
    return {
        "run": tree.run(tested, split),
        "corpus": tree.corpus(tested),
        "queries": tree.queries(tested),
    }


def _cascade_faults(
    tree: ResultsTree, arm: Arm, cells: Sequence[Cell], tested: str, checksums: Checksums
) -> Iterator[str]:
    path = tree.cascade(arm, tested)
    choice = read_json(path, {"chosen": str, "deepest": str, "schedules": list, "inputs": dict})
    read_chosen_schedule(path)
    for split in RANKED_SPLITS:
        scores = {checksums.sha256(tree.scores(cell, tested, split)) for cell in cells}
        if set(choice["inputs"][split]) != scores:
            yield f"was chosen from other scores of {split} than are there now; {REMAKE}"
        yield from checksums.changed_inputs(choice["inputs"]["qrels"], {split: tree.qrels(tested, split)})


def _cost_faults(
    tree: ResultsTree, arm: Arm, cells: Sequence[Cell], tested: str, checksums: Checksums
) -> Iterator[str]:
    cost = read_json(tree.cost(arm, tested), {"exits": list, "inputs": dict})
    yield from checksums.changed_inputs(cost["inputs"], {"cascade": tree.cascade(arm, tested)})
    scores = {checksums.sha256(tree.scores(cell, tested, "test")) for cell in cells}
    if cost["inputs"]["scores"] not in scores:
        yield f"was measured on other scores of test than are there now; {REMAKE}"


def _score_faults(scored: ScoredSplit, checksums: Checksums) -> Iterator[str]:
    table, model = scored.table, scored.tree.model(scored.cell)
    weights = {f"model/{file.name}": file for file in sorted(model.glob("*.safetensors"))}
    inputs = _ranked_inputs(scored.tree, scored.tested, scored.split) | weights
    yield from checksums.changed_inputs(parquet.read_inputs(scored.scores), inputs)
    stored = read_json(model / "lwr.json", {"start_layer": int, "depth": int})
    exits = [exit_name(layer) for layer in range(stored["start_layer"], stored["depth"] + 1)]
    if exits_in(table) != [FIRST_STAGE, *exits]:
        yield f"has the exits {', '.join(exits_in(table)[1:])}, the model {', '.join(exits)}; {REMAKE}"
    run = read_run(scored.first_stage)
    candidates = [(query, doc, score) for query, ranked in run.items() for doc, score in ranked]
    columns = ["query_id", "doc_id", FIRST_STAGE]
    if candidates != list(table[columns].itertuples(index=False, name=None)):
        yield f"holds other candidates than {scored.first_stage}; {REMAKE}"


def _measure_faults(scored: ScoredSplit, checksums: Checksums, means: LayerMeans) -> Iterator[str]:
    measures = read_measures([scored.measures])
    inputs = {"scores": scored.scores, "cascade": scored.cascade, "qrels": scored.qrels}
    yield from checksums.changed_inputs(parquet.read_inputs(scored.measures), inputs)
    exits = set(exits_in(scored.table))
    if read_chosen_schedule(scored.cascade) is not None:
        exits.add(CASCADE)
    collection = scored.tree.collection(scored.tested)
    judged = set(answerable_queries(read_qrels(collection, scored.split)))
    for (exit, measure), rows in measures.groupby(["exit", "measure"], sort=False):
        queries = rows["query_id"].tolist()
        if len(queries) != len(set(queries)) or (measure != "ties" and set(queries) != judged):
            yield f"{measure} of {exit} is of {len(queries)} queries, but {len(judged)} are judged; {REMAKE}"
    means.add(measures, scored.split)
    if set(measures["exit"]) != exits:
        measured = ", ".join(sorted(set(measures["exit"])))
        yield f"measures {measured}, but {scored.scores} has {', '.join(sorted(exits))}"


def _run_faults(scored: ScoredSplit) -> Iterator[str]:
    for exit in exits_in(scored.table):
        path = scored.runs / f"{exit}.trec"
        written = {query: [doc for doc, _ in ranked] for query, ranked in read_run(path).items()}
        expected = {query: list(docs) for query, docs in rankings(scored.table, exit).items()}
        if written != expected:
            yield f"{path}: ranks otherwise than {exit} of {scored.scores}; {REMAKE}"
    cascade = scored.runs / f"{CASCADE}.trec"
    if cascade.is_file():
        read_run(cascade)
