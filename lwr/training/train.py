"""Train one cell: from a base model and groups to a reranker in a folder."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainingArguments, set_seed

from lwr.common.atomic import atomic, check_writable
from lwr.common.code_digest import code_digest
from lwr.common.errors import BadInput
from lwr.common.exits import Cell, describe_layers, exit_name
from lwr.common.hashing import sha256
from lwr.common.json_lines import write_json, write_jsonl
from lwr.common.progress import log
from lwr.common.provenance import ResourceMeter, make_provenance
from lwr.config.model import BaseModelConfig
from lwr.config.training import NEED_SCORES, TrainingConfig
from lwr.formats.checkpoint import fetch_checkpoint, weights_fingerprint
from lwr.formats.training_groups import have_teacher_scores
from lwr.model.linear.frozen import check_base_precision
from lwr.model.linear.lora import add_lora
from lwr.model.loading import LoadedBaseModel, StockHead, load_base_model, set_dropout
from lwr.model.reranker import LayerwiseReranker
from lwr.training.dataset import read_groups
from lwr.training.dev_evaluation import read_dev_evaluation
from lwr.training.recompute import set_recompute
from lwr.training.trainer import COMPLETE_MARKER, LayerwiseTrainer

STOCK_HEADS: dict[str, StockHead] = {"yes_token": "vocabulary", "cross_encoder": "classifier"}
"""`head_init` -> the head of the checkpoint that it reads."""


def train(
    base: BaseModelConfig,
    start_layer: int,
    settings: TrainingConfig,
    groups: Path,
    collection: Path,
    dev_run: Path,
    seed: int,
    out: Path,
    label: str = "train",
    cell: Cell | None = None,
    measure: str = "nDCG@10",
    teacher_run: Path | None = None,
) -> None:
    """Train a reranker and write it to the folder `out`, with its logs and its provenance.

    A training that was killed resumes from its last checkpoint. If an error is raised, `out` stays as it was.

    Args:
        base: The base model.
        start_layer: The shallowest layer with a head.
        settings: The `train` section of the config.
        groups: Training groups, JSON lines.
        collection: Folder in BEIR layout, for evaluation during training.
        dev_run: TREC run of the dev queries, for the same.
        seed: Seed of the heads, the data order and dropout.
        out: The folder to write, in the format of `LayerwiseReranker.save_pretrained`. Its training.jsonl has the loss
            of every exit by step, its provenance.json what the model was made from.
        label: Prefix of the progress lines.
        cell: The point of a grid that is trained, for provenance.json; None outside a grid.
        measure: The measure of evaluations during training, as ir_measures names it.
        teacher_run: TREC run with the scores of the teacher that `distillation.external` names; None: it names none.

    Raises:
        BadInput: A file is malformed, the precision is float16 without a GPU, or bitsandbytes is missing.
        ValueError: The base model cannot be trained with these settings; raised before the first step.
        FloatingPointError: A loss or a gradient is not finite.
        MemoryError: A batch does not fit into memory.
    """
    meter = ResourceMeter()
    check_writable(out)
    if cell is not None and (cell.start_layer, cell.seed) != (start_layer, seed):
        raise ValueError(f"cell {cell} is not of start layer {start_layer} and seed {seed}; make them agree")
    _check_device(settings)
    check_base_precision(settings.lora)
    _check_teacher_scores(settings, groups, teacher_run)
    _check_parallel(settings, base)
    set_seed(seed)
    reranker = build_reranker(base, start_layer, settings)
    training_groups = read_groups(groups, reranker.prompt, settings.group_size, seed, teacher_run)
    rows = [row for group in training_groups for row in group.rows]
    log(f"{label}: {reranker.prompt.describe_cut(reranker.prompt.count_cut(rows), len(rows))}")
    dev_evaluation = None
    if settings.eval_steps is not None:
        dev_evaluation = read_dev_evaluation(reranker, collection, dev_run, settings.eval_queries, measure)
    facts = _list_inputs(base, start_layer, settings, groups, collection, dev_run, seed)
    if teacher_run is not None:
        facts["teacher_sha256"] = {str(settings.distillation.external): sha256(teacher_run)}
    facts["dev_measure"] = None if dev_evaluation is None else measure
    checkpoints = _checkpoint_folder(out, facts)
    arguments = _trainer_arguments(settings, reranker, seed, checkpoints)
    trainer = LayerwiseTrainer(reranker, training_groups, settings, arguments, dev_evaluation, label)
    _train_or_resume(trainer, checkpoints, label)
    logged = sum(line.get("skipped_steps", 0) for line in trainer.state.log_history)
    if skipped := logged + trainer.skipped_steps:  # those after the last log are in no line
        steps = trainer.state.global_step
        log(
            f"{label}: {skipped:g} of {steps} steps changed nothing: their gradients were beyond the range of float16"
        )
    is_sharded = settings.parallel == "fsdp"
    # complete, on the CPU of the first process; the others get nothing, but must take part
    gathered = trainer.accelerator.get_state_dict(trainer.model) if is_sharded else {}
    if trainer.is_world_process_zero():
        if is_sharded:
            reranker = build_reranker(base, start_layer, settings)
            reranker.load_state_dict(gathered)
        with atomic(out) as draft:
            reranker.save_pretrained(draft)
            write_jsonl(draft / "training.jsonl", trainer.state.log_history)
            _write_provenance(draft, meter, cell, facts)
        shutil.rmtree(checkpoints, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()


def _check_device(settings: TrainingConfig) -> None:
    """Raise BadInput for float16 without a GPU, where accelerate would train in float32 without a word."""
    if settings.precision == "float16" and not torch.cuda.is_available():
        raise BadInput("train.precision: float16 needs a GPU, and there is none; use float32 or bfloat16")


def _check_teacher_scores(settings: TrainingConfig, groups: Path, teacher_run: Path | None) -> None:
    """Raise BadInput if the loss needs teacher scores and there are none, or a teacher's name is without its run."""
    external = settings.distillation.external
    if isinstance(external, str) != (teacher_run is not None):
        raise BadInput(
            f"distillation.external is {external}, and --teacher-run is {teacher_run}: give the name of a teacher and "
            "its run (`lwr teach`), or neither"
        )
    if teacher_run is not None:
        return
    if settings.loss in NEED_SCORES and not have_teacher_scores([groups]):
        raise BadInput(
            f"{groups}:1: no teacher scores, but loss: {settings.loss} needs them; add pos_scores and neg_scores, set "
            "mining.teacher_run, name a teacher by distillation.external, or use loss: contrastive"
        )


def _check_parallel(settings: TrainingConfig, base: BaseModelConfig) -> None:
    """Raise ValueError if a training that shards its model has one process, or weights of two dtypes."""
    if settings.parallel == "ddp":
        return
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        raise ValueError(
            "parallel: fsdp shares a model among processes, but there is one; start more by `lwr launch --processes "
            "2 -- train …` (in a profile, `processes: 2`), or use parallel: ddp"
        )
    if base.dtype != "float32":
        raise ValueError(f"parallel: fsdp trains float32 weights, not {base.dtype}; set dtype: float32")


def _list_inputs(
    base: BaseModelConfig,
    start_layer: int,
    settings: TrainingConfig,
    groups: Path,
    collection: Path,
    dev_run: Path,
    seed: int,
) -> dict[str, Any]:
    """List everything that the weights depend on, as JSON values; files by their sha256."""
    dev_files = {}
    if settings.eval_steps is not None:
        dev_files = {
            "run": dev_run,
            "qrels": collection / "qrels/dev.tsv",
            "corpus": collection / "corpus.jsonl",
            "queries": collection / "queries.jsonl",
        }
    return {
        "base": base.slice(),
        "base_fingerprint": weights_fingerprint(fetch_checkpoint(base.model, base.revision)),
        "start_layer": start_layer,
        "settings": settings.model_dump(),
        "seed": seed,
        "groups_sha256": sha256(groups),
        "dev_sha256": {name: sha256(file) for name, file in dev_files.items()},
        "processes": int(os.environ.get("WORLD_SIZE", 1)),
        "code": code_digest("training/train"),
    }


def _checkpoint_folder(out: Path, inputs: dict[str, Any]) -> Path:
    """Name a folder beside `out` after the inputs, so that a training resumes only from checkpoints of the same."""
    digest = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:12]
    return out.parent / f"{out.name}.checkpoints-{digest}"


def _train_or_resume(trainer: LayerwiseTrainer, checkpoints: Path, label: str) -> None:
    """Train to the last step, starting from the newest complete checkpoint if there is one."""
    checkpoint = find_last_checkpoint(checkpoints)
    if checkpoint is not None:
        log(f"{label}: resuming from {checkpoint}")
    try:
        with trainer.progress:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except BaseException:
        with contextlib.suppress(OSError):
            checkpoints.rmdir()  # fails if there is a checkpoint in it, which must be kept
        raise


def find_last_checkpoint(checkpoints: Path) -> Path | None:
    """Return the newest checkpoint that is complete; a process that is killed leaves an incomplete one."""
    complete = [marker.parent for marker in checkpoints.glob(f"checkpoint-*/{COMPLETE_MARKER}")]
    return max(complete, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)


def _write_provenance(folder: Path, meter: ResourceMeter, cell: Cell | None, inputs: dict[str, Any]) -> None:
    """Write provenance.json: the cell, the inputs, the sha256 of every file in `folder`, the code and the machine."""
    written = sorted(file for file in folder.rglob("*") if file.is_file())
    facts = {
        "cell": None if cell is None else dataclasses.asdict(cell),
        **inputs,
        "gpu": _describe_gpu(),
        "threads": torch.get_num_threads(),
        "files": {str(file.relative_to(folder)): sha256(file) for file in written},
    }
    write_json(folder / "provenance.json", make_provenance(meter, **facts))


def _describe_gpu() -> dict[str, str | int] | None:
    """Return name and peak memory of the GPU that this process trained on, or None if it trained on a CPU."""
    if not torch.cuda.is_available():
        return None
    peak = torch.cuda.max_memory_allocated() // 2**20
    return {"name": torch.cuda.get_device_name(), "peak_memory_mib": peak}


def build_reranker(base: BaseModelConfig, start_layer: int, settings: TrainingConfig) -> LayerwiseReranker:
    """Build the untrained reranker of a cell, with its adapter if it has one.

    Raises:
        ValueError: The settings do not fit the base model.
    """
    loaded = load_base_model(base, STOCK_HEADS.get(settings.head_init))
    if settings.dropout is not None:
        set_dropout(loaded.backbone, settings.dropout)
    reranker = LayerwiseReranker(
        loaded.backbone,
        loaded.tokenizer,
        start_layer,
        pooling=base.pooling,
        head_every=settings.head_every,
        shared_head=settings.heads == "shared",
        own_norms=settings.exit_norm == "own",
        initial_heads=_initial_heads(base, loaded, settings),
        template=base.template,
        query_max_len=settings.query_max_len,
        passage_max_len=settings.passage_max_len,
        base=base,
    )
    if settings.head_init == "checkpoint":
        _check_continued(base, loaded, reranker)
    if loaded.cross_encoder is not None:
        loaded.cross_encoder.check_pooling(reranker.pooling)
        log(f"train: {base.model}: {loaded.cross_encoder.describe()}")
    if settings.lora is not None:
        add_lora(reranker, settings.lora)
    set_recompute(reranker.backbone, reranker.stack.blocks, settings.recompute)
    return reranker


def _initial_heads(
    base: BaseModelConfig, loaded: LoadedBaseModel, settings: TrainingConfig
) -> Tensor | dict[int, Tensor] | None:
    """Return the initial weights of the heads: [hidden] for all exits, layer -> [hidden], or None for random heads."""
    heads = {
        "random": None,
        "yes_token": loaded.yes_row,
        "checkpoint": loaded.heads or None,
        "cross_encoder": loaded.cross_encoder and loaded.cross_encoder.weight,
    }[settings.head_init]
    if heads is None and settings.head_init != "random":
        raise ValueError(
            f"head_init is {settings.head_init!r}, but {base.model} has no such head; use `random`"
        )
    return heads


def _check_continued(base: BaseModelConfig, loaded: LoadedBaseModel, reranker: LayerwiseReranker) -> None:
    """Raise ValueError if the heads of a reranker that lwr wrote would read another token or prompt than before."""
    template = reranker.prompt.template
    now = {"pooling": reranker.pooling, "template": None if template is None else template.model_dump()}
    for key, before in loaded.trained_as.items():
        if now[key] != before:
            raise ValueError(
                f"{base.model} was trained with {key} {before}, but base_models has {now[key]}; give it the same, or "
                "use head_init: random"
            )


def _trainer_arguments(
    settings: TrainingConfig, reranker: LayerwiseReranker, seed: int, checkpoints: Path
) -> TrainingArguments:
    """Translate the settings of a training into the Trainer's arguments."""
    keeps_best = settings.keep == "best"
    checkpoint_steps = settings.eval_steps if keeps_best else settings.checkpoint_steps
    block_classes = sorted({type(block).__name__ for block in reranker.stack.blocks})
    return TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=settings.steps or -1,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.groups_per_batch,
        gradient_accumulation_steps=settings.accumulation,
        learning_rate=settings.lr,
        lr_scheduler_type="linear",
        warmup_steps=settings.warmup,  # a share of the steps, because it is below 1
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.precision == "bfloat16",
        fp16=settings.precision == "float16",
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        logging_steps=settings.log_steps,
        logging_nan_inf_filter=False,
        eval_strategy="no" if settings.eval_steps is None else "steps",
        eval_steps=settings.eval_steps,
        save_strategy="no" if checkpoint_steps is None else "steps",
        save_steps=checkpoint_steps or 500,  # not used if save_strategy is "no"
        save_total_limit=2,
        load_best_model_at_end=keeps_best,
        metric_for_best_model=_metric_to_keep_by(settings, reranker.exits) if keeps_best else None,
        greater_is_better=True if keeps_best else None,
        remove_unused_columns=False,
        report_to=list(settings.report_to),
        fsdp=True if settings.parallel == "fsdp" else None,  # pyright: ignore[reportArgumentType]
        fsdp_config={
            "version": 2,
            "transformer_layer_cls_to_wrap": block_classes,
            "state_dict_type": "SHARDED_STATE_DICT",  # checkpoints: each process writes and reads its share
        },
        ddp_find_unused_parameters=False,  # parameters that no head depends on are frozen
        disable_tqdm=True,
    )


def _metric_to_keep_by(settings: TrainingConfig, exits: list[int]) -> str:
    """Return the name of the metric that chooses the best step. Raises ValueError if it is not of an exit."""
    if settings.keep_by == "mean":
        return "eval_mean"
    layer = exits[-1] if settings.keep_by == "deepest" else settings.keep_by
    if layer not in exits:
        raise ValueError(f"keep_by is {layer}, but exits are {describe_layers(exits)}")
    return f"eval_{exit_name(layer)}"
