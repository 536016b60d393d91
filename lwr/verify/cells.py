"""Check what the steps wrote for each arm and cell: models, scores, cascades, costs, measures and runs."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from lwr.common.errors import BadInput
from lwr.common.exits import (
    ARM_COLUMNS,
    FIRST_STAGE,
    Arm,
    Cell,
    all_exits_in,
    exit_name,
    exits_in,
    model_exits_in,
)
from lwr.common.json_lines import read_json, read_jsonl
from lwr.common.results_tree import ResultsTree, cell_of_model
from lwr.evaluation.arm_files import find_row, read_arm_fusion, read_chosen_cascades
from lwr.evaluation.measures import rankings, read_measures
from lwr.evaluation.schedules.replay import add_fused, read_scores
from lwr.formats import parquet
from lwr.formats.beir import Split, answerable_queries, read_qrels
from lwr.formats.checkpoint import check_weights, exits_of_description
from lwr.formats.fusion import read_cross_fitted, read_fusion
from lwr.formats.trec import read_run
from lwr.verify.tables import LayerMeans
from lwr.verify.verdict import REMAKE, Checksums, Verdict

RANKED_SPLITS: tuple[Split, ...] = ("dev", "test")


@dataclass(frozen=True)
class RankedDataset:
    """A data set that the cells of an arm rank, and the files that they share."""

    tree: ResultsTree
    arm: Arm
    cells: Sequence[Cell]
    name: str

    @property
    def cascade(self) -> Path:
        """The JSON file with the chosen cascades."""
        return self.tree.cascade(self.arm, self.name)

    @cached_property
    def chosen_on(self) -> str:
        """The data set on whose dev queries choices were made: this one, if it has any."""
        with contextlib.suppress(BadInput):  # a fault of the cascade, which its own check finds
            return read_json(self.cascade, {}).get("chosen_on", self.name)
        return self.name

    @property
    def splits(self) -> Sequence[Split]:
        """The splits that the cells rank."""
        return RANKED_SPLITS if self.chosen_on == self.name else ("test",)

    @cached_property
    def fusion(self) -> Path | None:
        """The JSON file with the weights of fused scores; None if cascades were chosen without (`fusion: off`)."""
        path = self.tree.fusion(self.arm, self.name)
        try:
            is_used = "fusion" in read_json(self.cascade, {"inputs": dict})["inputs"]
        except BadInput:  # a fault of the cascade, which its own check finds
            is_used = path.is_file()
        return path if is_used else None

    def scores(self, split: Split) -> list[Path]:
        """Return the scores of each cell, of dev those that choices were made on."""
        return [self.tree.scores(cell, self.judged(split), split) for cell in self.cells]

    def qrels(self, split: Split) -> Path:
        """Return the judgements of these scores."""
        return self.tree.qrels(self.judged(split), split)

    def judged(self, split: Split) -> str:
        """Return the data set of a split's scores, on which choices are made (dev) or measured (test)."""
        return self.chosen_on if split == "dev" else self.name


@dataclass(frozen=True)
class ScoredSplit:
    """The scores that a cell gave to a split of a data set, and the files that follow from them."""

    tree: ResultsTree
    cell: Cell
    tested: str
    split: Split
    fusion: Path | None  # the JSON file with the weights of the arm's fused scores

    @property
    def scores(self) -> Path:
        """The Parquet file of scores."""
        return self.tree.scores(self.cell, self.tested, self.split)

    @property
    def measures(self) -> Path:
        """The Parquet file of measures."""
        return self.tree.measures(self.cell, self.tested, self.split)

    @property
    def runs(self) -> Path:
        """The folder of runs."""
        return self.tree.runs(self.cell, self.tested, self.split)

    @property
    def cascade(self) -> Path:
        """The JSON file with the cascades chosen for the arm."""
        return self.tree.cascade(self.cell, self.tested)

    @property
    def qrels(self) -> Path:
        """The judgements of the split."""
        return self.tree.qrels(self.tested, self.split)

    @property
    def first_stage(self) -> Path:
        """The run whose candidates were scored."""
        return self.tree.run(self.tested, self.split)

    @cached_property
    def table(self) -> pd.DataFrame:
        """The table of scores, read once for the checks of scores, measures and runs."""
        return read_scores(self.scores)

    @cached_property
    def ranked_table(self) -> pd.DataFrame:
        """The table of scores with the fused scores that were evaluated."""
        if self.fusion is None:
            return self.table
        cross_fitted = self.split == "dev"
        return add_fused(self.table, read_arm_fusion(self.fusion, model_exits_in(self.table), cross_fitted))


def check_cells(tree: ResultsTree, checksums: Checksums, means: LayerMeans, verdict: Verdict) -> None:
    """Check every arm and cell, and collect the means of their measures in `means`."""
    rankers: dict[str, list[RankedDataset]] = defaultdict(list)  # data set -> the arms that rank it
    for arm in tree.arms_on_disk():
        cells = tree.cells_on_disk(arm)
        tested = _tested_datasets(tree, arm, cells)
        if not tested:
            verdict.faults.append(f"{tree.arm(arm)}: no scores, measures or cascades; run the workflow again")
        for cell in cells:
            verdict.check(tree.model(cell), _model_faults(tree, cell, tested, checksums))
        for name in tested:
            ranked = RankedDataset(tree, arm, cells, name)
            if ranked.fusion is not None:
                verdict.check(ranked.fusion, _fusion_faults(ranked, ranked.fusion, checksums))
            elif (unused := tree.fusion(arm, name)).is_file():
                verdict.notes.append(
                    f"{unused}: weights that the cascade was not chosen with, may be removed"
                )
            if (precision := tree.precision(arm, name)).is_file():
                verdict.check(precision, _precision_faults(ranked, precision, checksums))
            verdict.check(ranked.cascade, _cascade_faults(ranked, checksums))
            rankers[name].append(ranked)
            for cell in cells:
                path = tree.calibration(cell, name)
                verdict.check(path, _calibration_faults(path, ranked, cell, checksums))
                for split in ranked.splits:
                    scored = ScoredSplit(tree, cell, name, split, ranked.fusion)
                    verdict.check(scored.scores, _score_faults(scored, checksums))
                    verdict.check(scored.measures, _measure_faults(scored, checksums, means))
                    verdict.check(scored.runs, _run_faults(scored))
    for name, arms in rankers.items():
        verdict.check(tree.cost(name), _cost_faults(tree.cost(name), arms, checksums))


def _tested_datasets(tree: ResultsTree, arm: Arm, cells: Sequence[Cell]) -> list[str]:
    """Return the data sets that anything was written about."""
    tested = {file.stem for file in tree.existing(tree.cascade(arm, "*"))}
    for cell in cells:
        for path in (tree.scores, tree.measures, tree.runs):
            tested |= {folder.name for folder in tree.existing(path(cell, "*", "*").parent)}
    return sorted(tested)


def _model_faults(
    tree: ResultsTree, folder_cell: Cell, tested: Sequence[str], checksums: Checksums
) -> Iterator[str]:
    model = tree.model(folder_cell)
    check_weights(model)
    required = {"files": dict, "groups_sha256": str, "dev_sha256": dict}
    provenance = read_json(model / "provenance.json", required)
    yield from _model_file_faults(model, provenance["files"], checksums)
    read_json(model / "lwr.json", {"start_layer": int, "depth": int})
    for _ in read_jsonl(model / "training.jsonl", {}):
        pass

    cell = cell_of_model(model)
    if cell != folder_cell:
        yield f"was trained for {tree.cell(cell)}; {REMAKE}"
    groups = tree.groups(cell.trained_on)
    yield from checksums.changed_inputs({"groups": provenance["groups_sha256"]}, {"groups": groups})
    dev_inputs = [{**_ranked_inputs(tree, name, "dev"), "qrels": tree.qrels(name, "dev")} for name in tested]
    if taught := provenance.get("teacher_sha256"):
        runs = {name: tree.teacher_run(cell.trained_on, name) for name in taught}
        yield from checksums.changed_inputs(taught, runs)
    recorded_dev = provenance["dev_sha256"]
    if recorded_dev and all(list(checksums.changed_inputs(recorded_dev, inputs)) for inputs in dev_inputs):
        yield f"was evaluated on another dev collection than is there now; {REMAKE}"
    base_model = tree.base_model(cell.base_model)
    if provenance["base_fingerprint"] != read_json(base_model, {"fingerprint": str})["fingerprint"]:
        yield f"was trained on another {cell.base_model} than {base_model} describes; {REMAKE}"


def _model_file_faults(model: Path, recorded: Mapping[str, str], checksums: Checksums) -> Iterator[str]:
    """Compare a model's files with those that training wrote. recorded: name -> checksum."""
    for name, checksum in recorded.items():
        file = model / name
        if not file.is_file():
            yield f"{file}: missing; remove the model and run the workflow again"
        elif checksums.sha256(file) != checksum:
            yield f"{file}: not what training wrote; put it back, or remove the model and train again"
    found = {
        str(file.relative_to(model)) for file in model.rglob("*") if file.is_file() and file.name[0] != "."
    }
    for name in sorted(found - recorded.keys() - {"provenance.json"}):
        yield f"{model / name}: not a file that training wrote; remove it"


def _ranked_inputs(tree: ResultsTree, tested: str, split: Split) -> dict[str, Path]:
    """Return the files that scores are made of, apart from the model."""
    return {
        "run": tree.run(tested, split),
        "corpus": tree.corpus(tested),
        "queries": tree.queries(tested),
    }


def _fusion_faults(ranked: RankedDataset, fusion: Path, checksums: Checksums) -> Iterator[str]:
    inputs = read_json(fusion, {"inputs": dict})["inputs"]
    read_fusion(fusion)
    read_cross_fitted(fusion)
    if set(inputs["dev"]) != {checksums.sha256(file) for file in ranked.scores("dev")}:
        yield f"was fitted on other scores of dev than are there now; {REMAKE}"
    yield from checksums.changed_inputs(inputs["qrels"], {"dev": ranked.qrels("dev")})


def _precision_faults(ranked: RankedDataset, precision: Path, checksums: Checksums) -> Iterator[str]:
    compared = read_json(precision, {"exits": list, "inputs": dict})["inputs"]["dev"]
    if set(compared) != {checksums.sha256(file) for file in ranked.scores("dev")}:
        yield f"compares other scores of dev than are there now; {REMAKE}, or remove it if they are float32"


def _calibration_faults(path: Path, ranked: RankedDataset, cell: Cell, checksums: Checksums) -> Iterator[str]:
    recorded = read_json(path, {"exits": dict, "inputs": dict})["inputs"]
    inputs = {split: ranked.tree.scores(cell, ranked.judged(split), split) for split in RANKED_SPLITS}
    if ranked.fusion is not None:
        inputs["fusion"] = ranked.fusion
    yield from checksums.changed_inputs(recorded, inputs)
    qrels = {split: ranked.qrels(split) for split in RANKED_SPLITS}
    yield from checksums.changed_inputs(recorded["qrels"], qrels)


def _cascade_faults(ranked: RankedDataset, checksums: Checksums) -> Iterator[str]:
    choice = read_json(ranked.cascade, {"chosen": str, "deepest": str, "schedules": list, "inputs": dict})
    chosen = read_chosen_cascades(ranked.cascade)
    if ranked.fusion is not None:
        yield from checksums.changed_inputs(choice["inputs"], {"fusion": ranked.fusion})
    for split in RANKED_SPLITS:
        if set(choice["inputs"][split]) != {checksums.sha256(file) for file in ranked.scores(split)}:
            yield f"was chosen from other scores of {split} than are there now; {REMAKE}"
        yield from checksums.changed_inputs(choice["inputs"]["qrels"], {split: ranked.qrels(split)})
    for cascade in chosen.values():
        find_row(ranked.cascade, choice["schedules"], cascade)


def _cost_faults(path: Path, rankers: Sequence[RankedDataset], checksums: Checksums) -> Iterator[str]:
    """Compare the costs of a data set with the arms that rank it."""
    measured = {
        Arm(**{name: arm[name] for name in ARM_COLUMNS[1:]}): arm["inputs"]
        for arm in read_json(path, {"arms": list})["arms"]
    }
    for ranked in rankers:
        inputs = measured.pop(ranked.arm, None)
        if inputs is None:
            yield f"lacks {ranked.tree.arm(ranked.arm)}; {REMAKE}"
            continue
        yield from checksums.changed_inputs(inputs, {"cascade": ranked.cascade})
        if inputs["scores"] not in {checksums.sha256(file) for file in ranked.scores("test")}:
            yield f"was measured on other scores of {ranked.tree.arm(ranked.arm)} than are there now; {REMAKE}"
    for arm in measured:
        yield f"has {rankers[0].tree.arm(arm)}, which is missing; {REMAKE}"


def _score_faults(scored: ScoredSplit, checksums: Checksums) -> Iterator[str]:
    table, model = scored.table, scored.tree.model(scored.cell)
    weights = {f"model/{file.name}": file for file in sorted(model.glob("*.safetensors"))}
    inputs = _ranked_inputs(scored.tree, scored.tested, scored.split) | weights
    yield from checksums.changed_inputs(parquet.read_inputs(scored.scores), inputs)
    stored = read_json(model / "lwr.json", {"start_layer": int, "depth": int})
    exits = [exit_name(layer) for layer in exits_of_description(stored)]
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
    if scored.fusion is not None:
        inputs["fusion"] = scored.fusion
    yield from checksums.changed_inputs(parquet.read_inputs(scored.measures), inputs)
    exits = {*all_exits_in(scored.ranked_table), *read_chosen_cascades(scored.cascade)}
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
    for exit in all_exits_in(scored.ranked_table):
        path = scored.runs / f"{exit}.trec"
        written = {query: [doc for doc, _ in ranked] for query, ranked in read_run(path).items()}
        expected = {query: list(docs) for query, docs in rankings(scored.ranked_table, exit).items()}
        if written != expected:
            yield f"{path}: ranks otherwise than {exit} of {scored.scores}; {REMAKE}"
    for cascade in read_chosen_cascades(scored.cascade):
        read_run(scored.runs / f"{cascade}.trec")
