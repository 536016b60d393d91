"""Training one cell: the Hugging Face Trainer around the layerwise loss."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from lwr.base_model import load_base_model, set_dropout
from lwr.beir import Qrels, read_qrels, read_queries, sample_queries
from lwr.checkpoint import fetch, fingerprint
from lwr.config import Base, Train
from lwr.files import BadInput, atomic, check_writable, sha256, write_json, write_jsonl
from lwr.flops import shape_of
from lwr.groups import Group, collate, read_groups
from lwr.measures import per_query, rankings
from lwr.memory import mended_by
from lwr.progress import clock, say
from lwr.prompt import Row
from lwr.provenance import Meter, code_digest, provenance
from lwr.recompute import set_recompute
from lwr.reranker import LayerwiseReranker
from lwr.saved import writing
from lwr.score import candidate_texts
from lwr.speed import Speed
from lwr.trec import read_run

WHOLE = "whole"  # a file in each checkpoint, written last


@dataclass(frozen=True)
class DevLook:
    """Some dev queries with their candidates, tokenised once, to rank while training."""

    rows: list[Row]
    pairs: list[tuple[str, str]]  # (query id, passage id) of each row
    qrels: Qrels

    def ndcg(self, reranker: LayerwiseReranker, precision: str) -> dict[int, float]:
        """nDCG@10 of each exit, the mean over queries."""
        training = reranker.training
        reranker.eval()
        scores = reranker.score_rows(self.rows, reranker.exits, precision=precision)
        reranker.train(training)
        table = pd.DataFrame(self.pairs, columns=["query_id", "doc_id"])
        return {
            k: self._mean_ndcg(table.assign(score=by_layer))
            for k, by_layer in zip(reranker.exits, scores, strict=True)
        }

    def _mean_ndcg(self, table: pd.DataFrame) -> float:
        return float(per_query(self.qrels, rankings(table, "score"), ["nDCG@10"])["value"].mean())


def read_look(reranker: LayerwiseReranker, collection: Path, dev_run: Path, queries: int) -> DevLook:
    """The candidates of at most `queries` dev queries, a sample by hash. Raises BadInput."""
    texts, run = read_queries(collection), read_run(dev_run)
    qrels = read_qrels(collection, "dev", texts)
    if unknown := run.keys() - qrels.keys():
        raise BadInput(f"{dev_run}: query {min(unknown)!r} is not judged for dev; give the run of dev")
    sample = sample_queries(run, queries)
    candidates = {query: run[query] for query in sample}
    passages = candidate_texts(collection, "dev", candidates)
    pairs = [(query, doc) for query in sample for doc, _ in candidates[query]]
    rows = reranker.prompt.rows([(texts[query], passages[doc]) for query, doc in pairs])
    return DevLook(rows, pairs, {query: qrels[query] for query in sample})


def train(
    base: Base,
    start_layer: int,
    settings: Train,
    groups: Path,
    collection: Path,
    dev_run: Path,
    seed: int,
    out: Path,
    label: str = "train",
) -> None:
    """Write the trained reranker to the folder `out` (`LayerwiseReranker.save_pretrained`), and its
    training.jsonl: the loss per exit by step.

    Raises ValueError or BadInput on what cannot be trained, before the first step; FloatingPointError where a loss
    or a gradient is not finite, and MemoryError. `out` is then as it was.
    """
    meter = Meter()
    check_writable(out)
    set_seed(seed)
    reranker = build(base, start_layer, settings)
    data = read_groups(groups, reranker.prompt, settings.group_size, seed)
    look = settings.eval_steps and read_look(reranker, collection, dev_run, settings.eval_queries)
    looked_at = {"run": dev_run, "qrels": collection / "qrels/dev.tsv"} if look else {}
    looked_at |= {name: collection / f"{name}.jsonl" for name in ("corpus", "queries") if look}
    facts = {
        "base": base.identity(),
        "base_fingerprint": fingerprint(fetch(base.model, base.revision)),
        "start_layer": start_layer,
        "settings": settings.model_dump(),
        "seed": seed,
        "groups_sha256": sha256(groups),
        "dev_sha256": {name: sha256(file) for name, file in looked_at.items()},
        "processes": int(os.environ.get("WORLD_SIZE", 1)),
        "code": code_digest("train"),
    }
    identity = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
    work = out.parent / f"{out.name}.checkpoints-{identity}"  # other settings never meet these checkpoints

    trainer = LayerwiseTrainer(
        reranker, data, settings, _arguments(settings, reranker, seed, work), look, label
    )
    checkpoint = last_whole_checkpoint(work)
    if checkpoint is not None:
        say(f"{label}: going on from {checkpoint}")
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
            write_json(unfinished / "provenance.json", provenance(meter, **facts, gpu=_gpu(), files=files))
        shutil.rmtree(work, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()


def build(base: Base, start_layer: int, settings: Train) -> LayerwiseReranker:
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
        settings.groups_per_batch,
        start_layer,
        pooling=base.pooling,
        shared_head=settings.heads == "shared",
        initial_heads=initial[settings.head_init],
        template=base.template,
        query_max_len=settings.query_max_len,
        passage_max_len=settings.passage_max_len,
        base=base,
        distillation=settings.distillation,
        exit_weights=settings.exit_weights,
    )
    if settings.lora is not None:
        reranker.add_lora(settings.lora)
    set_recompute(reranker.backbone, reranker.trunk.blocks, settings.recompute)
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


def _arguments(settings: Train, reranker: LayerwiseReranker, seed: int, work: Path) -> TrainingArguments:
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


def _optimizer(reranker: LayerwiseReranker, settings: Train) -> torch.optim.Optimizer:
    """AdamW; norms, biases and heads do not decay."""
    backbone = [p for p in reranker.backbone.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        [
            {"params": [p for p in backbone if p.ndim > 1], "weight_decay": settings.weight_decay},
            {"params": [p for p in backbone if p.ndim <= 1], "weight_decay": 0.0},
            {"params": list(reranker.heads), "lr": settings.head_lr, "weight_decay": 0.0},
        ],
        lr=settings.lr,
    )


def _collate(groups: Sequence[Group], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return collate(groups, tokenizer) | {"names": [group.name for group in groups]}


class LayerwiseTrainer(Trainer):
    """Adds to the Trainer: the loss of every exit in the logs, dev nDCG@10 as evaluation, small checkpoints."""

    def __init__(
        self,
        reranker: LayerwiseReranker,
        data: list[Group],
        settings: Train,
        arguments: TrainingArguments,
        look: DevLook | None,
        label: str,
    ):
        super().__init__(
            reranker,
            arguments,
            train_dataset=data,
            eval_dataset=look and look.rows,  # never iterated: `evaluate` ranks the look itself
            data_collator=partial(_collate, tokenizer=reranker.tokenizer),
            optimizers=(_optimizer(reranker, settings), None),
            callbacks=[Watch(label, reranker.exits, settings.group_size)],
        )
        self.remove_callback(PrinterCallback)
        self.reranker, self.settings, self.look = reranker, settings, look
        self.parts: list[Tensor] = []  # [2, exits] of each batch since the last log
        self.names: list[str] = []  # of the groups since the last step of the optimiser
        self.speed = Speed(
            shape_of(reranker.backbone),
            arguments.device,
            torch.bfloat16 if settings.precision == "bfloat16" else torch.float32,
            frozen=settings.lora is not None,
        )

    def training_step(self, model, inputs, num_items_in_batch=None):
        rows, tokens = inputs["pair"]["attention_mask"].shape
        fix = f"a batch of {rows} rows of {tokens} tokens; lower groups_per_batch (and raise accumulation), "
        fix += "passage_max_len or group_size, or set recompute: blocks"
        with mended_by(fix):
            return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.names += inputs["names"]
        output = model(**{name: value for name, value in inputs.items() if name != "names"})
        parts = torch.stack([output.parts.contrastive, output.parts.distillation]).detach()
        if not torch.isfinite(output.loss):
            finite = zip(self.reranker.exits, parts.isfinite().all(0), strict=True)
            exits = [
                k for k, is_finite in finite if not is_finite
            ] or self.reranker.exits  # or by their weights
            raise self._not_finite(f"loss of exits {exits}", inputs["names"])
        self.parts.append(parts)
        self.speed.add(inputs["pair"]["attention_mask"])
        return (output.loss, output) if return_outputs else output.loss

    def _clip_grad_norm(self, model):
        """Also looks at the gradients: one that is not finite would spoil the weights, at the last step unseen."""
        heads = {k: self.reranker.head(k).grad for k in self.reranker.exits}
        finite = {
            k: grad is None or grad.isfinite().all() for k, grad in heads.items()
        }  # clipping spreads NaN
        norm = super()._clip_grad_norm(model)
        if not math.isfinite(norm):
            exits = [k for k in finite if not finite[k]]
            what = f"gradient of exits {exits}" if exits else "gradient of the backbone"
            raise self._not_finite(what, self.names)
        self.names.clear()
        return norm

    def _not_finite(self, what: str, names: list[str]) -> FloatingPointError:
        shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
        return FloatingPointError(
            f"the {what} is not finite after step {self.state.global_step}, in a batch of the groups {shown}; "
            "lower lr or head_lr, or use precision: float32; look at these groups"
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self.parts:
            contrastive, distillation = self.accelerator.reduce(
                torch.stack(self.parts).mean(0), "mean"
            ).tolist()
            self.parts.clear()
            for i, k in enumerate(self.reranker.exits):
                logs |= {f"contrastive_layer_{k}": contrastive[i], f"distillation_layer_{k}": distillation[i]}
            logs |= self.speed.since_last()
        super().log(logs, start_time)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        ndcg = self.look.ndcg(self.reranker, self.settings.precision)
        metrics = {f"eval_layer_{k}": value for k, value in ndcg.items()}
        metrics["eval_mean"] = sum(ndcg.values()) / len(ndcg)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Only what trains: under LoRA a checkpoint does not carry the frozen backbone."""
        trained = {name for name, p in self.reranker.named_parameters() if p.requires_grad}
        super()._save(output_dir, {n: t for n, t in self.reranker.state_dict().items() if n in trained})

    def _issue_warnings_after_load(self, load_result) -> None:
        """Frozen tensors are missing from a checkpoint by design; a tensor too many is not ours."""
        if load_result.unexpected_keys:
            raise ValueError(
                f"{self.args.output_dir}: checkpoint of another model, with {load_result.unexpected_keys}"
            )

    def _save_checkpoint(self, model, trial) -> None:
        with writing(Path(self.args.output_dir)):
            super()._save_checkpoint(model, trial)
        if self.is_world_process_zero():
            (Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}" / WHOLE).touch()


class Watch(TrainerCallback):
    """Says how training goes: a bar in a terminal, and a line for each log and each look at dev."""

    def __init__(self, label: str, exits: list[int], group_size: int):
        self.label, self.exits, self.chance = label, exits, math.log(group_size)

    def on_train_begin(self, args, state, control, **_):
        self.start, self.first_step = time.monotonic(), state.global_step
        hidden = not (sys.stderr.isatty() and state.is_world_process_zero)
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.label, disable=hidden)

    def on_step_end(self, args, state, control, **_):
        self.bar.update()

    def on_log(self, args, state, control, logs, **_):
        if not state.is_world_process_zero:
            return
        if "loss" in logs:
            passed = time.monotonic() - self.start
            left = (
                passed / max(state.global_step - self.first_step, 1) * (state.max_steps - state.global_step)
            )
            self._say(
                state,
                f"loss by layer {self._by_layer(logs, 'contrastive')} (chance {self.chance:.2f}), "
                f"{logs['tokens_per_second']:,.0f} tokens/s, {logs['mfu']:.0%} of what matrix products reach, "
                f"{clock(passed)} passed, {clock(left)} left",
            )
        if "eval_mean" in logs:
            self._say(state, f"dev nDCG@10 by layer {self._by_layer(logs, 'eval')}")

    def on_train_end(self, args, state, control, **_):
        self.bar.close()

    def _by_layer(self, logs: dict[str, float], name: str) -> str:
        return " ".join(f"{k}:{logs[f'{name}_layer_{k}']:.3f}" for k in self.exits)

    def _say(self, state, text: str) -> None:
        tqdm.write(f"{self.label}: step {state.global_step}/{state.max_steps}, {text}", file=sys.stderr)
