"""Whether a grid can run: its sections against each other, and against the checkpoints and files that it names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from lwr.config.data import BeirFolderSource, FlagEmbeddingSource
from lwr.config.grid import GridConfig
from lwr.config.measure_names import measure_problem
from lwr.config.problems import Loc, Problem, nearest
from lwr.config.training import TrainingConfig
from lwr.formats.checkpoint import count_layers


def problems_of_parts(config: GridConfig) -> list[Problem]:
    """What is wrong with each part, whatever stands in the others."""
    layers, missing = _layers(config)
    found = [*_repeated(config), *_files(config), *_measures(config), *_variants(config), *missing]
    for base, last in layers.items():
        found += _depth(config, base, last)
        for variant in _known_variants(config, base):
            found += _keep(config, base, variant, last)
    return list(dict.fromkeys(found))


def problems_between_parts(config: GridConfig) -> list[Problem]:
    """What is wrong with parts that do not go together: worth saying where each of them is right."""
    return list(dict.fromkeys([*_tests(config), *_group_sizes(config), *_exit_weights(config)]))


def summary(config: GridConfig) -> str:
    """What a grid holds, for people."""
    cells = config.cells()
    trained = dict.fromkeys(cell.trained_on for cell in cells)
    rows = [("data set", f"{name}; ranked: {', '.join(config.tests_of(name))}") for name in trained]
    for name, last in _layers(config)[0].items():
        starts = ", ".join(map(str, config.start_layers_of(name)))
        depth = f"last layer: {last}" if last else "not downloaded yet"
        rows.append(("base model", f"{name}; start layers: {starts}; {depth}"))
    rows += [("variant", name) for name in config.variants]
    rows += [("seeds", ", ".join(map(str, config.seeds))), ("measures", ", ".join(config.measures))]
    total = f"{len(cells)} cells, a training each, written to {config.results}/"
    return "\n".join([total, *(f"  {what:<12}{which}" for what, which in rows)])


def _layers(config: GridConfig) -> tuple[dict[str, int | None], list[Problem]]:
    """The deepest layer of each base model as the grid cuts it; the checkpoints that are not there.

    None for a hub id that is not downloaded yet: that it is too shallow shows only then.
    """
    layers: dict[str, int | None] = dict.fromkeys(config.base_models)
    missing = []
    for name, base in config.base_models.items():
        try:
            depth = count_layers(base.model, base.revision)
        except ValueError as error:
            missing.append(Problem(("base_models", name, "model"), str(error)))
        else:
            layers[name] = depth and min(base.num_layers or depth, depth)
    return layers, missing


# --- each part -----------------------------------------------------------------------------------------


def _repeated(config: GridConfig) -> Iterator[Problem]:
    lists = {(key,): getattr(config, key) for key in ("start_layers", "seeds", "measures")}
    lists |= {("base_models", n, "start_layers"): b.start_layers or [] for n, b in config.base_models.items()}
    lists |= {("base_models", n, "variants"): b.variants or [] for n, b in config.base_models.items()}
    lists |= {("datasets", name, "tests"): about.tests for name, about in config.datasets.items()}
    for loc, values in lists.items():
        for value in dict.fromkeys(v for v in values if values.count(v) > 1):
            yield Problem(loc, f"{value} stands twice")


def _variants(config: GridConfig) -> Iterator[Problem]:
    for name, base in config.base_models.items():
        for place, variant in enumerate(base.variants or []):
            if variant not in config.variants:
                loc = ("base_models", name, "variants", place)
                yield Problem(loc, f"no variant {variant}{nearest(variant, config.variants)}")


def _known_variants(config: GridConfig, base: str) -> list[str]:
    return [variant for variant in config.variants_of(base) if variant in config.variants]


def _files(config: GridConfig) -> Iterator[Problem]:
    for name, about in config.datasets.items():
        at = ("datasets", name)
        match about.source:
            case BeirFolderSource(path=path) if not Path(path).expanduser().is_dir():
                yield Problem((*at, "source", "path"), f"no such folder: {path}")
            case FlagEmbeddingSource(path=path) if not Path(path).expanduser().exists():
                yield Problem((*at, "source", "path"), f"no such file or folder: {path}")
        runs = {(*at, "first_stage", "runs", split): run for split, run in about.first_stage.runs.items()}
        if about.mining.teacher_run is not None:
            runs[*at, "mining", "teacher_run"] = about.mining.teacher_run
        for loc, run in runs.items():
            if not Path(run).expanduser().is_file():
                yield Problem(loc, f"no such file: {run}")


def _measures(config: GridConfig) -> Iterator[Problem]:
    for place, name in enumerate(config.measures):
        if problem := measure_problem(name):
            yield Problem(("measures", place), problem)


def _depth(config: GridConfig, name: str, last: int | None) -> Iterator[Problem]:
    base = config.base_models[name]
    if last is None:
        return
    if base.num_layers is not None and base.num_layers > last:
        text = f"{base.num_layers} is deeper than the last layer of {base.model}, {last}"
        yield Problem(("base_models", name, "num_layers"), text)
    own = base.start_layers is not None
    for place, start in enumerate(config.start_layers_of(name)):
        if start > last:
            loc = ("base_models", name, "start_layers", place) if own else ("start_layers", place)
            whose = "" if own else f" of {name}"
            yield Problem(loc, f"{start} is deeper than the last layer{whose}, {last}")


def _keep(config: GridConfig, base: str, variant: str, last: int | None) -> Iterator[Problem]:
    try:
        train = config.train_of(base, variant)
    except ValidationError as error:  # each patch is right by itself, their sum is not
        loc = _set_by(config, base, variant, "keep", "eval_steps")
        yield from (Problem(loc, str(problem["ctx"]["error"])) for problem in error.errors())
        return
    if train.keep != "best" or not isinstance(train.keep_by, int) or last is None:
        return
    for start in config.start_layers_of(base):
        if start <= last and not start <= train.keep_by <= last:
            text = f"{train.keep_by} is no exit of {base} with heads from {start} to {last}"
            yield Problem(_set_by(config, base, variant, "keep_by"), text)


def _set_by(config: GridConfig, base: str, variant: str, *keys: str) -> Loc | None:
    """Where the first of `keys` that is set gets its value for a base model under a variant."""
    patches = {
        ("variants", variant): config.variants[variant],
        ("base_models", base, "train"): config.base_models[base].train,
        ("train",): config.train,
    }
    places = ((*loc, key) for loc, patch in patches.items() for key in keys if key in patch.model_fields_set)
    return next(places, None)


# --- between parts -------------------------------------------------------------------------------------


def _tests(config: GridConfig) -> Iterator[Problem]:
    groups_alone = [
        name for name in config.datasets if isinstance(config.datasets[name].source, FlagEmbeddingSource)
    ]
    rankable = config.datasets.keys() - groups_alone
    for name, about in config.datasets.items():
        loc = ("datasets", name, "tests")
        if name in groups_alone and not about.tests:
            yield Problem(loc, "training groups alone cannot be ranked; name the data sets that are")
        for place, test in enumerate(about.tests):
            if test not in config.datasets:
                yield Problem((*loc, place), f"no data set {test}{nearest(test, rankable)}")
            elif test in groups_alone:
                yield Problem((*loc, place), f"{test} holds training groups alone, which cannot be ranked")
    if not config.cells():
        yield Problem(("datasets",), "the grid is empty; leave `train: true` with at least one data set")


def _group_sizes(config: GridConfig) -> Iterator[Problem]:
    mined = {
        name: about.mining.negatives
        for name, about in config.datasets.items()
        if about.train and not isinstance(about.source, FlagEmbeddingSource)
    }
    for (base, variant), train in _trainings(config).items():
        for name, negatives in mined.items():
            if train.group_size - 1 > negatives:
                mining = ("datasets", name, "mining", "negatives")
                loc = _set_by(config, base, variant, "group_size") or mining
                fix = f"set group_size to {negatives + 1} or mining.negatives to {train.group_size - 1}"
                text = f"groups of {train.group_size}, but {name} has {negatives} negatives; {fix}"
                yield Problem(loc, text)


def _exit_weights(config: GridConfig) -> Iterator[Problem]:
    """Weights for a layer that has a head in none of the cells where they count."""
    layers, _ = _layers(config)
    nowhere: dict[Loc, list[int]] = {}
    for (base, variant), train in _trainings(config).items():
        exits = range(min(config.start_layers_of(base)), (layers[base] or 10**6) + 1)
        if loc := _set_by(config, base, variant, "exit_weights"):
            nowhere[loc] = [k for k in nowhere.get(loc, train.exit_weights) if k not in exits]
    for loc, left in nowhere.items():
        yield from (Problem((*loc, layer), "no cell has a head at this layer") for layer in left)


def _trainings(config: GridConfig) -> dict[tuple[str, str], TrainingConfig]:
    """By base model and variant, those that `_keep` has nothing to say against."""
    trainings = {}
    pairs = ((base, variant) for base in config.base_models for variant in _known_variants(config, base))
    for pair in pairs:
        with contextlib.suppress(ValidationError):
            trainings[pair] = config.train_of(*pair)
    return trainings
