"""Try out the base models of a grid with the lengths and heads of their trainings, and its teachers, for `lwr check`.

This is apart from `lwr.model.base`, so that the step `base` does not depend on the sections of a grid.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lwr.common.errors import BadInput
from lwr.common.yaml_lines import read_yaml
from lwr.config.consistency import find_setting
from lwr.config.data.bi_encoder import CheckpointSection
from lwr.config.data.first_stage import EmbeddingFirstStage
from lwr.config.grid import GridConfig
from lwr.config.load import locate, read
from lwr.config.model import BaseModelConfig
from lwr.config.problems import Problem
from lwr.config.teachers.sections import CellTeacher
from lwr.formats.checkpoint import HubUnreachable, is_on_this_machine
from lwr.model.base import TriedBaseModel, try_base_model
from lwr.model.loading import check_row_limit, copy_norm
from lwr.model.prompt import Prompt
from lwr.model.reranker import LayerwiseReranker
from lwr.model.sources.cross_encoder import NOT_LINEAR
from lwr.scoring.teachers.loading import check_teacher


def check_base_models(file: Path, describe: Callable[[LayerwiseReranker], str] | None = None) -> list[str]:
    """Try out the base models of a grid that are on this machine, with the lengths of their trainings.

    Teachers and the bi-encoders of first stages are checked, too. Of one on the hub all but the weights is fetched.

    Args:
        file: The config of the grid, which `lwr.config.check.check` has accepted.
        describe: Returns what to say of a base model that can be used; it gets its first blocks with random heads.

    Returns:
        A line for each base model that is not on this machine, those of `describe`, and a line for each teacher or
        bi-encoder that could not be checked.

    Raises:
        BadInput: One line per problem: file, line, key, and what is wrong.
    """
    config, source = read(file), read_yaml(file)
    notes, problems = [], []
    for name, base_model in config.base_models.items():
        if is_on_this_machine(base_model.model, base_model.revision):
            found, tried, warning = _problems(config, name)
            problems += found
            if warning is not None:
                notes.append(f"  {name}: {warning}")
            if tried is not None and describe is not None:
                notes.append(f"  {name}: {describe(tried.reranker)}")
        else:
            notes.append(
                f"  {name}: {base_model.model} is not on this machine, unchecked; `lwr base` fetches and tries it"
            )
    for loc, (title, section) in _other_checkpoints(config).items():
        try:
            problems += [problem.below(*loc) for problem in check_teacher(section)]
        except HubUnreachable as error:
            notes.append(f"  {title}: unchecked; {error}")
    located = {locate(problem, source.values, [source]) for problem in problems}
    if located:
        raise BadInput("\n".join(text for _, _, text in sorted(located)))
    return notes


def _other_checkpoints(config: GridConfig) -> dict[tuple[str, ...], tuple[str, CheckpointSection]]:
    """Return the teachers and the bi-encoders of first stages: place in the config -> (title, section)."""
    found: dict[tuple[str, ...], tuple[str, CheckpointSection]] = {
        ("teachers", name): (f"teacher {name}", teacher)
        for name, teacher in config.teachers.items()
        if not isinstance(teacher, CellTeacher)
    }
    for name, dataset in config.datasets.items():
        if isinstance(dataset.first_stage, EmbeddingFirstStage):
            found["datasets", name, "first_stage"] = (f"first stage of {name}", dataset.first_stage)
    return found


def _problems(config: GridConfig, name: str) -> tuple[list[Problem], TriedBaseModel | None, str | None]:
    """Try out a base model.

    Returns:
        What is wrong with it and with its trainings; the model if it can be used; and a warning if its heads are to
        begin as the head of a cross-encoder, but can only approximate it.
    """
    base_model = config.base_models[name]
    trainings = {variant: config.train_of(name, variant) for variant in config.variants_of(name)}
    needs_vocabulary = any(training.head_init == "yes_token" for training in trainings.values())
    try:
        tried = try_base_model(base_model, "vocabulary" if needs_vocabulary else None)
    except ValueError as error:
        return [Problem(("base_models", name, "model"), str(error))], None, None
    problems = []
    warning: str | None = None
    cross_encoder_problem: str | None = None
    if any(training.head_init == "cross_encoder" for training in trainings.values()):
        try:
            warning = _try_cross_encoder(base_model)
        except BadInput as error:
            cross_encoder_problem = str(error)
    no_compression = (
        f"passages cannot be compressed for {base_model.model}, whose tokens mix not by attention alone; remove the "
        "key, or this base model"
    )
    if config.score.widths and not tried.reranker.can_compress:
        problems.append(Problem(("score", "widths"), no_compression))
    template = base_model.template if tried.reranker.stack.causal else None
    tokenizer = tried.reranker.prompt.tokenizer
    for variant, training in trainings.items():
        try:
            prompt = Prompt(tokenizer, template, training.query_max_len, training.passage_max_len)
            check_row_limit(prompt, tried.positions)
        except ValueError as error:
            keys = ("passage_max_len", "query_max_len")
            loc = find_setting(config, name, variant, *keys) or ("base_models", name, "model")
            problems.append(Problem(loc, f"{base_model.model}: {error}"))
        if training.exit_norm == "own":
            try:
                copy_norm(tried.reranker.stack.norm)
            except ValueError as error:
                loc = find_setting(config, name, variant, "exit_norm")
                problems.append(Problem(loc, f"{base_model.model}: {error}"))
        if training.head_init == "cross_encoder" and cross_encoder_problem is not None:
            loc = find_setting(config, name, variant, "head_init")
            problems.append(Problem(loc, cross_encoder_problem))
        if training.compression is not None and not tried.reranker.can_compress:
            loc = find_setting(config, name, variant, "compression")
            problems.append(Problem(loc, no_compression))
        if training.head_init == "yes_token" and not tried.has_yes_row:
            loc = find_setting(config, name, variant, "head_init")
            problems.append(
                Problem(
                    loc, f"{base_model.model} has no language-model head to take `Yes` from; use `random`"
                )
            )
    return problems, tried, warning


def _try_cross_encoder(base_model: BaseModelConfig) -> str | None:
    """Return a warning if heads can only approximate that of a cross-encoder. Raises BadInput if they cannot at all."""
    tried = try_base_model(base_model, "classifier")
    assert tried.cross_encoder is not None  # asked for
    tried.cross_encoder.check_pooling(tried.reranker.pooling)
    return None if tried.cross_encoder.is_linear else NOT_LINEAR
