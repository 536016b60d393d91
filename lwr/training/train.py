"""Training one cell, from base model and groups to a reranker in a folder."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path

import torch
from transformers import TrainingArguments, set_seed

from lwr.common.atomic import atomic, check_writable
from lwr.common.code_digest import code_digest
from lwr.common.exits import Cell
from lwr.common.hashing import sha256
from lwr.common.json_lines import write_json, write_jsonl
from lwr.common.progress import log
from lwr.common.provenance import ResourceMeter, make_provenance
from lwr.config.model import BaseModelConfig
from lwr.config.training import TrainingConfig
from lwr.formats.checkpoint import fetch_checkpoint, weights_fingerprint
from lwr.model.loading import load_base_model, set_dropout
from lwr.model.lora import add_lora
from lwr.model.reranker import LayerwiseReranker
from lwr.training.dataset import read_groups
from lwr.training.dev_evaluation import read_dev_evaluation
from lwr.training.recompute import set_recompute
from lwr.training.trainer import WHOLE, LayerwiseTrainer


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
) -> None:
    """Write the trained reranker to the folder `out` (`LayerwiseReranker.save_pretrained`), and its
    training.jsonl: the loss per exit by step.

    Raises ValueError or BadInput on what cannot be trained, before the first step; FloatingPointError where a loss
    or a gradient is not finite, and MemoryError. `out` is then as it was.

    Args:
        cell: The point of a grid that is trained, recorded in provenance.json; None outside a grid.
    """
    if cell is not None and (cell.start_layer, cell.seed) != (start_layer, seed):
        raise ValueError(f"cell {cell} is not of start layer {start_layer} and seed {seed}; make them agree")
    meter = ResourceMeter()
    check_writable(out)
    set_seed(seed)
    reranker = build_reranker(base, start_layer, settings)
    data = read_groups(groups, reranker.prompt, settings.group_size, seed)
    look = settings.eval_steps and read_dev_evaluation(reranker, collection, dev_run, settings.eval_queries)
    texts = {name: collection / f"{name}.jsonl" for name in ("corpus", "queries")}
    looked_at = {"run": dev_run, "qrels": collection / "qrels/dev.tsv", **texts} if look else {}
    facts = {
        "base": base.slice(),
        "base_fingerprint": weights_fingerprint(fetch_checkpoint(base.model, base.revision)),
        "start_layer": start_layer,
        "settings": settings.model_dump(),
        "seed": seed,
        "groups_sha256": sha256(groups),
        "dev_sha256": {name: sha256(file) for name, file in looked_at.items()},
        "processes": int(os.environ.get("WORLD_SIZE", 1)),
        "code": code_digest("training/train"),
    }
    identity = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
    work = out.parent / f"{out.name}.checkpoints-{identity}"  # other settings never meet these checkpoints

    trainer = LayerwiseTrainer(
        reranker, data, settings, _arguments(settings, reranker, seed, work), look, label
    )
    checkpoint = last_whole_checkpoint(work)
    if checkpoint is not None:
        log(f"{label}: going on from {checkpoint}")
    try:
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    except BaseException:
        with contextlib.suppress(OSError):
            work.rmdir()  # where there is no checkpoint in it
        raise
    if trainer.is_world_process_zero():
        with atomic(out) as unfinished:
            reranker.save_pretrained(unfinished)
            write_jsonl(unfinished / "training.jsonl", trainer.state.log_history)
            written = sorted(file for file in unfinished.rglob("*") if file.is_file())
            files = {str(file.relative_to(unfinished)): sha256(file) for file in written}
            named = {"cell": None if cell is None else dataclasses.asdict(cell)}
            facts = named | facts | {"gpu": _gpu(), "files": files}
            write_json(unfinished / "provenance.json", make_provenance(meter, **facts))
        shutil.rmtree(work, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()


def build_reranker(base: BaseModelConfig, start_layer: int, settings: TrainingConfig) -> LayerwiseReranker:
    """The untrained reranker of a cell. Raises ValueError where heads can't start as asked."""
    loaded = load_base_model(base, with_vocabulary=settings.head_init == "yes_token")
    if settings.dropout is not None:
        set_dropout(loaded.backbone, settings.dropout)
    initial = {"random": None, "yes_token": loaded.yes_row, "checkpoint": loaded.heads or None}
    if settings.head_init != "random" and initial[settings.head_init] is None:
        raise ValueError(
            f"head_init is {settings.head_init!r}, but {base.model} has no such head; use `random`"
        )
    reranker = LayerwiseReranker(
        loaded.backbone,
        loaded.tokenizer,
        start_layer,
        pooling=base.pooling,
        shared_head=settings.heads == "shared",
        initial_heads=initial[settings.head_init],
        template=base.template,
        query_max_len=settings.query_max_len,
        passage_max_len=settings.passage_max_len,
        base=base,
    )
    if settings.lora is not None:
        add_lora(reranker, settings.lora)
    set_recompute(reranker.backbone, reranker.stack.blocks, settings.recompute)
    return reranker


def _gpu() -> dict[str, str | int] | None:
    """Name and peak memory of the device this process trained on; None for a CPU."""
    if not torch.cuda.is_available():
        return None
    peak = torch.cuda.max_memory_allocated() // 2**20
    return {"name": torch.cuda.get_device_name(), "peak_memory_mib": peak}


def last_whole_checkpoint(work: Path) -> Path | None:
    """The newest checkpoint that was written to its end; a kill may have cut a later one short."""
    whole = [marker.parent for marker in work.glob(f"checkpoint-*/{WHOLE}")]
    return max(whole, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)


def _arguments(
    settings: TrainingConfig, reranker: LayerwiseReranker, seed: int, work: Path
) -> TrainingArguments:
    keep_best = settings.keep == "best"
    exits = reranker.exits
    keep_by = exits[-1] if settings.keep_by == "deepest" else settings.keep_by
    if keep_best and keep_by not in ("mean", *exits):
        raise ValueError(f"keep_by is {keep_by}, but exits are {exits[0]}..{exits[-1]}")
    checkpoint_steps = settings.eval_steps if keep_best else settings.checkpoint_steps
    return TrainingArguments(
        output_dir=str(work),
        max_steps=settings.steps or -1,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.groups_per_batch,
        gradient_accumulation_steps=settings.accumulation,
        learning_rate=settings.lr,
        lr_scheduler_type="linear",
        warmup_steps=settings.warmup,
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.precision == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        logging_steps=settings.log_steps,
        logging_nan_inf_filter=False,
        eval_strategy="no" if settings.eval_steps is None else "steps",
        eval_steps=settings.eval_steps,
        save_strategy="no" if checkpoint_steps is None else "steps",
        save_steps=checkpoint_steps or 500,
        save_total_limit=2,
        load_best_model_at_end=keep_best,
        metric_for_best_model=("eval_mean" if keep_by == "mean" else f"eval_layer_{keep_by}")
        if keep_best
        else None,
        greater_is_better=True if keep_best else None,
        remove_unused_columns=False,
        report_to=list(settings.report_to),
        ddp_find_unused_parameters=False,  # what no head reads is frozen
        disable_tqdm=True,
    )
