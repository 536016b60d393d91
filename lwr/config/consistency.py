"""Check the sections of a grid against each other, and against the checkpoints and files that they name."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator

from pydantic import ValidationError

from lwr.common.exits import describe_layers, layers_with_head
from lwr.common.yaml_lines import Loc
from lwr.config.evaluation import CHOOSING_MEASURES
from lwr.config.grid import GridConfig
from lwr.config.model import BaseModelConfig
from lwr.config.problems import Problem, suggest
from lwr.config.training import NEED_SCORES, TrainingConfig
from lwr.formats.checkpoint import count_layers


def problems_of_sections(config: GridConfig) -> list[Problem]:
    """Return what is wrong with single sections, their files and their checkpoints."""
    layers, missing = last_layers(config)
    found = [*_duplicates(config), *_files(config), *_measures(config), *_variants(config), *missing]
    for base_model, last in layers.items():
        found += _depth(config, base_model, last)
        for variant in _known_variants(config, base_model):
            found += _keep(config, base_model, variant, last)
    return list(dict.fromkeys(found))


def problems_between_sections(config: GridConfig) -> list[Problem]:
    """Return what is wrong between sections; only meaningful where every key is valid."""
    checks = (_tests, _group_sizes, _exit_weights, _teacher_scores)
    return list(dict.fromkeys(problem for check in checks for problem in check(config)))


def last_layer(base: BaseModelConfig) -> int | None:
    """Return the last layer of a base model after it is cut to `num_layers`; None for a model not downloaded yet.

    Raises:
        BadInput: A local checkpoint is missing, or is not a transformer.
    """
    depth = count_layers(base.model, base.revision)
    return None if depth is None else min(base.num_layers or depth, depth)


def last_layers(config: GridConfig) -> tuple[dict[str, int | None], list[Problem]]:
    """Return the last layer of each base model, and the checkpoints that are missing."""
    layers: dict[str, int | None] = dict.fromkeys(config.base_models)
    missing = []
    for name, base in config.base_models.items():
        try:
            layers[name] = last_layer(base)
        except ValueError as error:
            missing.append(Problem(("base_models", name, "model"), str(error)))
    return layers, missing


def trainings(config: GridConfig) -> dict[tuple[str, str], TrainingConfig]:
    """Return the trainings by base model and variant, without those that `_keep` reports as invalid."""
    found = {}
    for base_model in config.base_models:
        for variant in _known_variants(config, base_model):
            with contextlib.suppress(ValidationError):
                found[base_model, variant] = config.train_of(base_model, variant)
    return found


def measure_problem(name: str) -> str | None:
    """Return what is wrong with the name of a measure, with the nearest valid one; None if it can be computed."""
    import ir_measures

    try:
        is_supported = ir_measures.DefaultPipeline.supports(ir_measures.parse_measure(name))
    except NameError:
        family, at, cutoff = name.partition("@")
        hint = suggest(family, {measure.NAME for measure in ir_measures.measures.registry.values()})
        return f"{name} is not a measure{hint.replace('`?', f'{at}{cutoff}`?')}"
    except (ValueError, AssertionError, SyntaxError, TypeError):
        # ir_measures cannot parse what follows the name
        return f"{name} is not a measure; write it as nDCG@10, RR or P(rel=2)@5"
    return None if is_supported else f"{name} cannot be computed with the installed packages"


def primary_problem(name: str) -> str | None:
    """Return why a measure that can be computed cannot be the primary one, by which cascades are chosen; else None."""
    import ir_measures

    measure = ir_measures.parse_measure(name)
    if measure.NAME in CHOOSING_MEASURES and set(measure.params) <= {"cutoff", "rel"}:
        return None
    families = ", ".join(CHOOSING_MEASURES)
    return f"{name} cannot choose cascades; put one of {families} first, with a cutoff and `rel` alone"


# --- Single sections ---


def _duplicates(config: GridConfig) -> Iterator[Problem]:
    lists: dict[Loc, list] = {(key,): getattr(config, key) for key in ("start_layers", "seeds", "measures")}
    lists["score", "widths"] = [list(pair) for pair in config.score.widths]
    for name, base in config.base_models.items():
        lists["base_models", name, "start_layers"] = base.start_layers or []
        lists["base_models", name, "variants"] = base.variants or []
    for name, dataset in config.datasets.items():
        lists["datasets", name, "tests"] = dataset.tests
        lists["datasets", name, "variants"] = dataset.variants or []
    for loc, values in lists.items():
        for value in dict.fromkeys(str(value) for value in values if values.count(value) > 1):
            yield Problem(loc, f"{value} is duplicated; remove one")


def _files(config: GridConfig) -> Iterator[Problem]:
    for name, dataset in config.datasets.items():
        yield from (problem.below("datasets", name) for problem in dataset.problems())


def _measures(config: GridConfig) -> Iterator[Problem]:
    for index, name in enumerate(config.measures):
        if problem := measure_problem(name) or (primary_problem(name) if index == 0 else None):
            yield Problem(("measures", index), problem)


def _variants(config: GridConfig) -> Iterator[Problem]:
    sections = {"base_models": config.base_models, "datasets": config.datasets}
    for section, entries in sections.items():
        for name, entry in entries.items():
            for index, variant in enumerate(entry.variants or []):
                if variant not in config.variants:
                    loc = (section, name, "variants", index)
                    yield Problem(loc, f"unknown variant {variant}{suggest(variant, config.variants)}")
    trained = {variant for name in config.base_models for variant in _known_variants(config, name)}
    for name, dataset in config.datasets.items():
        if dataset.variants and set(dataset.variants) <= config.variants.keys() - trained:
            text = f"no base model is trained under any of these; use {', '.join(sorted(trained))}"
            yield Problem(("datasets", name, "variants"), text)


def _known_variants(config: GridConfig, base_model: str) -> list[str]:
    return [variant for variant in config.variants_of(base_model) if variant in config.variants]


def _depth(config: GridConfig, name: str, last: int | None) -> Iterator[Problem]:
    """Yield the layers of a base model that are deeper than its checkpoint."""
    base = config.base_models[name]
    if last is None:
        return
    if base.num_layers is not None and base.num_layers > last:
        text = f"{base.num_layers} is deeper than the last layer of {base.model}, {last}"
        yield Problem(("base_models", name, "num_layers"), text)
    for index, start in enumerate(config.start_layers_of(name)):
        if start > last and base.start_layers is not None:
            loc = ("base_models", name, "start_layers", index)
            yield Problem(loc, f"{start} is deeper than the last layer, {last}")
        elif start > last:
            yield Problem(("start_layers", index), f"{start} is deeper than the last layer of {name}, {last}")
    for index, (layer, _) in enumerate(config.score.widths):
        if layer >= last:
            text = f"no block of {name} reads the tokens after layer {layer}; give a layer below {last}"
            yield Problem(("score", "widths", index), text)


def _keep(config: GridConfig, base_model: str, variant: str, last: int | None) -> Iterator[Problem]:
    """Yield what is wrong with keys of a training that depend on each other, and with `keep_by`."""
    try:
        train = config.train_of(base_model, variant)
    except ValidationError as error:  # each override is valid, but not their combination
        for problem in error.errors():
            keys = ("loss", "distillation") if "distillation" in problem["loc"] else ("keep", "eval_steps")
            loc = find_setting(config, base_model, variant, *keys)
            yield Problem(loc, problem["msg"].removeprefix("Value error, "))
        return
    windows = config.score.windows
    if windows is not None and windows.overlap >= train.passage_max_len:
        text = (
            f"{windows.overlap} tokens fill the windows of {base_model}; give less than its passage_max_len, "
        )
        yield Problem(("score", "windows", "overlap"), f"{text}{train.passage_max_len}")
    if train.compression is not None and last is not None:
        for layer in (layer for layer in train.compression.layers if layer >= last):
            text = f"no block of {base_model} reads the tokens after layer {layer}; give layers below {last}"
            yield Problem(find_setting(config, base_model, variant, "compression"), text)
    if train.keep != "best" or not isinstance(train.keep_by, int) or last is None:
        return
    for start in config.start_layers_of(base_model):
        exits = layers_with_head(start, last, train.head_every)
        if start <= last and train.keep_by not in exits:
            heads = describe_layers(exits)
            text = f"{train.keep_by} is not an exit of {base_model}, which has heads at layers {heads}"
            yield Problem(find_setting(config, base_model, variant, "keep_by"), text)


def find_setting(config: GridConfig, base_model: str, variant: str, *keys: str) -> Loc:
    """Return where a training gets the value of the first of `keys` that is set; (): none is set."""
    sections = {
        ("variants", variant): config.variants[variant],
        ("base_models", base_model, "train"): config.base_models[base_model].train,
        ("train",): config.train,
    }
    for loc, section in sections.items():
        for key in keys:
            if key in section.model_fields_set:
                return (*loc, key)
    return ()


# --- Between sections ---


def _tests(config: GridConfig) -> Iterator[Problem]:
    """Yield the data sets that cannot be ranked."""
    rankable = [name for name, dataset in config.datasets.items() if dataset.source.is_collection]
    for name, dataset in config.datasets.items():
        loc = ("datasets", name, "tests")
        if not dataset.tests and name not in rankable:
            yield Problem(loc, "training groups cannot be ranked; name the data sets that should be")
        for index, test in enumerate(dataset.tests):
            if test not in config.datasets:
                yield Problem((*loc, index), f"unknown data set {test}{suggest(test, rankable)}")
            elif test not in rankable:
                yield Problem((*loc, index), f"{test} has only training groups, which cannot be ranked")
        yield from _chosen_on(config, name, rankable)
    if not any(dataset.train for dataset in config.datasets.values()):
        yield Problem(("datasets",), "the grid is empty; leave `train: true` with at least one data set")


def _chosen_on(config: GridConfig, name: str, rankable: Collection[str]) -> Iterator[Problem]:
    """Yield why choices for a data set cannot be made on the dev queries of the one that it names."""
    other, loc = config.datasets[name].chosen_on, ("datasets", name, "chosen_on")
    if other is None:
        return
    if other not in rankable:
        yield Problem(loc, f"{other} is not a data set with dev queries{suggest(other, rankable)}")
        return
    if config.datasets[other].chosen_on is not None:
        yield Problem(loc, f"{other} has no dev queries itself; name a data set without chosen_on")
    for trained in (trained for trained, dataset in config.datasets.items() if dataset.train):
        tests = config.tests_of(trained)
        if name in tests and other not in tests:
            text = f"rerankers trained on {trained} rank {name}, but not {other}; add it to their tests"
            yield Problem(loc, text)
        if tests[0] == name:
            text = f"training on {trained} is evaluated on its dev queries; put {other} first in the tests of {trained}"
            yield Problem(loc, text)


def _group_sizes(config: GridConfig) -> Iterator[Problem]:
    """Yield the trainings whose groups are larger than the mined ones."""
    mined = {
        name: dataset.mining.negatives
        for name, dataset in config.datasets.items()
        if dataset.train and dataset.source.is_collection
    }
    for (base_model, variant), train in trainings(config).items():
        needed = train.group_size - 1
        for name, negatives in mined.items():
            if needed > negatives:
                mining = ("datasets", name, "mining", "negatives")
                loc = find_setting(config, base_model, variant, "group_size") or mining
                fix = f"set group_size to {negatives + 1} or mining.negatives to {needed}"
                yield Problem(loc, f"groups of {needed + 1}, but {name} has {negatives} negatives; {fix}")


def _exit_weights(config: GridConfig) -> Iterator[Problem]:
    """Yield the weights of layers that have a head in none of the cells where the weights apply."""
    layers, _ = last_layers(config)
    unused: dict[Loc, list[int]] = {}
    for (base_model, variant), train in trainings(config).items():
        exits = _exits_of_any_cell(config, base_model, train, layers[base_model])
        if loc := find_setting(config, base_model, variant, "exit_weights"):
            unused[loc] = [layer for layer in unused.get(loc, train.exit_weights) if layer not in exits]
    for loc, weighted in unused.items():
        yield from (Problem((*loc, layer), "no cell has a head at this layer") for layer in weighted)


def _exits_of_any_cell(
    config: GridConfig, base_model: str, train: TrainingConfig, last: int | None
) -> Collection[int]:
    """Return the layers with a head for any of a base model's start layers; all deeper ones if it is not here yet."""
    starts = config.start_layers_of(base_model)
    if last is None:
        return range(min(starts), 10**6)
    return {layer for start in starts for layer in layers_with_head(start, last, train.head_every)}


def _teacher_scores(config: GridConfig) -> Iterator[Problem]:
    """Yield the losses that need teacher scores where the groups of a data set have none."""
    needing = {
        find_setting(config, base_model, variant, "loss"): train.loss
        for (base_model, variant), train in trainings(config).items()
        if train.loss in NEED_SCORES and not isinstance(train.distillation.external, str)
    }
    for name, dataset in config.datasets.items():
        if not needing or not dataset.train or dataset.has_teacher_scores():
            continue
        fix = (
            "set its mining.teacher_run" if dataset.source.is_collection else "add pos_scores and neg_scores"
        )
        for loc, loss in needing.items():
            yield Problem(loc, f"{loss} needs teacher scores, but groups of {name} have none; {fix}")
