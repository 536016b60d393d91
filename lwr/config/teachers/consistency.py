"""Check teachers: their checkpoints, the names by which they are used, and that no cell teaches itself."""

from __future__ import annotations

from collections.abc import Iterator

from lwr.common.exits import Cell, describe_layers, layers_with_head
from lwr.common.yaml_lines import Loc
from lwr.config.consistency import find_setting, last_layers, trainings
from lwr.config.grid import GridConfig
from lwr.config.problems import Problem, suggest
from lwr.config.teachers.sections import CellTeacher
from lwr.config.training import TrainingConfig

Trainings = dict[tuple[str, str], TrainingConfig]
"""The trainings by base model and variant."""


def problems_of_checkpoints(config: GridConfig) -> list[Problem]:
    """Return what is wrong with the checkpoints of teachers, as far as they are on this machine."""
    return [
        problem.below("teachers", name)
        for name, teacher in config.teachers.items()
        if not isinstance(teacher, CellTeacher)
        for problem in teacher.problems()
    ]


def problems_of_teachers(config: GridConfig) -> list[Problem]:
    """Return what is wrong between teachers and the rest of a grid; only meaningful where every key is valid."""
    found = [*_names(config), *_cells(config)]
    return found or list(_cycles(config))


def _names(config: GridConfig) -> Iterator[Problem]:
    """Yield the uses of teachers that are not defined, or cannot be used there."""
    for name, dataset in config.datasets.items():
        teacher, loc = dataset.mining.teacher, ("datasets", name, "mining", "teacher")
        if teacher is None:
            continue
        if not dataset.source.is_collection:
            yield Problem(loc, "groups made elsewhere are not mined; remove it")
        elif teacher not in config.teachers:
            yield _unknown(config, loc, teacher)
        elif isinstance(config.teachers[teacher], CellTeacher):
            text = f"{teacher} is a cell, which is trained on the groups that mining makes; use another kind of teacher"
            yield Problem(loc, text)
    adopted = [
        name
        for name, dataset in config.datasets.items()
        if dataset.train and not dataset.source.is_collection
    ]
    for loc, teacher in _uses(config).items():
        if teacher not in config.teachers:
            yield _unknown(config, loc, teacher)
        for dataset in adopted:
            text = f"groups of {dataset} have no collection that {teacher} could score"
            yield Problem(loc, f"{text}; use `external: true` with scores in the groups")


def _uses(config: GridConfig) -> dict[Loc, str]:
    """Return where trainings name their teachers."""
    return {
        (*find_setting(config, base_model, variant, "distillation"), "external"): train.distillation.external
        for (base_model, variant), train in trainings(config).items()
        if isinstance(train.distillation.external, str)
    }


def _unknown(config: GridConfig, loc: Loc, name: str) -> Problem:
    fix = suggest(name, config.teachers) or "; define it in `teachers`"
    return Problem(loc, f"unknown teacher {name}{fix}")


def _cells(config: GridConfig) -> Iterator[Problem]:
    """Yield the cells that teach but are not in the grid, and exits and fused scores that they do not have."""
    (layers, _), trained = last_layers(config), trainings(config)
    for name, teacher in config.teachers.items():
        if not isinstance(teacher, CellTeacher):
            continue
        cell, loc = teacher.cell, ("teachers", name)
        missing = list(_missing_parts(config, teacher))
        yield from (problem.below(*loc) for problem in missing)
        if missing:
            continue
        last = layers[cell.base_model]
        train = trained.get((cell.base_model, cell.variant))
        exits = (
            layers_with_head(cell.start_layer, last, train.head_every) if last is not None and train else None
        )
        if teacher.layer < cell.start_layer or (exits is not None and teacher.layer not in exits):
            heads = describe_layers(exits) if exits is not None else f"from {cell.start_layer} on"
            text = f"{teacher.layer} is not an exit of this cell, which has heads at layers {heads}"
            yield Problem((*loc, "layer"), text)
        if teacher.fused and config.fusion is None:
            yield Problem((*loc, "fused"), "the grid has `fusion: off`; switch it on, or leave out `fused`")


def _missing_parts(config: GridConfig, teacher: CellTeacher) -> Iterator[Problem]:
    """Yield the first part of a cell that the grid does not have."""
    cell = teacher.cell
    if cell.base_model not in config.base_models:
        hint = suggest(cell.base_model, config.base_models)
        yield Problem(("cell", "base_model"), f"unknown base model {cell.base_model}{hint}")
        return
    parts = {
        "start_layer": (cell.start_layer, config.start_layers_of(cell.base_model)),
        "variant": (cell.variant, config.variants_of(cell.base_model)),
        "seed": (cell.seed, config.seeds),
    }
    for key, (value, known) in parts.items():
        if value not in known:
            use = ", ".join(map(str, known))
            yield Problem(
                ("cell", key), f"the grid has no such cell of {cell.base_model}: {value}; use {use}"
            )


def _cycles(config: GridConfig) -> Iterator[Problem]:
    """Yield the teachers that are cells which learn, directly or through others, from themselves."""
    datasets, trained = dict.fromkeys(arm.trained_on for arm in config.arms()), trainings(config)
    for name, teacher in config.teachers.items():
        if not isinstance(teacher, CellTeacher):
            continue
        for dataset in datasets:
            start = teacher.cell_of(dataset)
            if cycle := _find_cycle(config, trained, start):
                path = ", which learns from ".join(map(_describe, cycle))
                text = f"{path}: a cycle; give one of them a variant with another teacher"
                yield Problem(("teachers", name, "cell"), text)
                break


def _find_cycle(config: GridConfig, trained: Trainings, start: Cell) -> list[Cell]:
    """Return the cells from `start` to `start`, each followed by a cell that it learns from; empty: there are none."""
    paths, seen = [[start]], set()
    while paths:
        path = paths.pop()
        for cell in _learns_from(config, trained, path[-1]):
            if cell == start:
                return [*path, cell]
            if cell not in seen:
                seen.add(cell)
                paths.append([*path, cell])
    return []


def _learns_from(config: GridConfig, trained: Trainings, cell: Cell) -> list[Cell]:
    """Return the cells that a cell learns from: with fused scores all seeds, from which their weights are fitted."""
    train = trained.get((cell.base_model, cell.variant))
    teacher = None if train is None else config.teachers.get(str(train.distillation.external))
    if not isinstance(teacher, CellTeacher):
        return []
    teaching = teacher.cell_of(cell.trained_on)
    seeds = config.seeds if teacher.fused else [teaching.seed]
    return [Cell(**vars(teaching.arm), seed=seed) for seed in seeds]


def _describe(cell: Cell) -> str:
    return f"{cell.base_model}/start{cell.start_layer}/{cell.variant}/seed{cell.seed}"
