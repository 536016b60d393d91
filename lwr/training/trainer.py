"""The Hugging Face Trainer around the layerwise loss: what it logs, looks at, saves, and refuses."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from lwr.common.progress import format_duration
from lwr.config.training import TrainingConfig
from lwr.evaluation.flops import shape_of
from lwr.model.batching import out_of_memory_hint
from lwr.model.reranker import LayerwiseReranker
from lwr.model.storage import convert_write_errors
from lwr.training.dataset import TrainingGroup, collate
from lwr.training.dev_evaluation import DevEvaluation
from lwr.training.loss import LayerwiseLoss, assign_teachers, layerwise_loss
from lwr.training.throughput import Throughput

WHOLE = "whole"  # a file in each checkpoint, written last


def _optimizer(reranker: LayerwiseReranker, settings: TrainingConfig) -> torch.optim.Optimizer:
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


def _collate(groups: Sequence[TrainingGroup], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return collate(groups, tokenizer) | {"names": [group.name for group in groups]}


class LayerwiseTrainer(Trainer):
    """Adds to the Trainer: the loss of every exit in the logs, dev nDCG@10 as evaluation, small checkpoints."""

    def __init__(
        self,
        reranker: LayerwiseReranker,
        data: list[TrainingGroup],
        settings: TrainingConfig,
        arguments: TrainingArguments,
        look: DevEvaluation | None,
        label: str,
    ):
        super().__init__(
            reranker,
            arguments,
            train_dataset=data,
            eval_dataset=look and look.rows,  # never iterated: `evaluate` ranks the look itself
            data_collator=partial(_collate, tokenizer=reranker.tokenizer),
            optimizers=(_optimizer(reranker, settings), None),
            callbacks=[ProgressCallback(label, reranker.exits, settings.group_size)],
        )
        self.remove_callback(PrinterCallback)
        self.reranker, self.settings, self.look = reranker, settings, look
        distillation = settings.distillation
        self.teachers = assign_teachers(reranker.exits, distillation.teacher, distillation.every)
        self.exit_weights = [float(settings.exit_weights.get(k, 1.0)) for k in reranker.exits]
        self.parts: list[Tensor] = []  # [2, exits] of each batch since the last log
        self.names: list[str] = []  # of the groups since the last step of the optimiser
        self.speed = Throughput(
            shape_of(reranker.backbone),
            arguments.device,
            torch.bfloat16 if settings.precision == "bfloat16" else torch.float32,
            frozen=settings.lora is not None,
        )

    def training_step(self, model, inputs, num_items_in_batch=None):
        rows, tokens = inputs["pair"]["attention_mask"].shape
        fix = f"a batch of {rows} rows of {tokens} tokens; lower groups_per_batch (and raise accumulation), "
        fix += "passage_max_len or group_size, or set recompute: blocks"
        with out_of_memory_hint(fix):
            return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.names += inputs["names"]
        scores = model(inputs["pair"])  # [exits, rows]
        loss = self._loss(scores.view(len(scores), inputs["groups"], -1), inputs["teacher_scores"])
        parts = torch.stack([loss.contrastive, loss.distillation]).detach()
        if not torch.isfinite(loss.total):
            finite = zip(self.reranker.exits, parts.isfinite().all(0), strict=True)
            exits = [
                k for k, is_finite in finite if not is_finite
            ] or self.reranker.exits  # or by their weights
            raise self._not_finite(f"loss of exits {exits}", inputs["names"])
        self.parts.append(parts)
        self.speed.add(inputs["pair"]["attention_mask"])
        return (loss.total, scores) if return_outputs else loss.total

    def _loss(self, scores: Tensor, teacher_scores: Tensor | None) -> LayerwiseLoss:
        """Compute the loss of scores [exits, groups, group size] by the settings of the training."""
        distillation = self.settings.distillation
        external = teacher_scores if distillation.external else None
        return layerwise_loss(scores, self.teachers, distillation.temperature, self.exit_weights, external)

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
        with convert_write_errors(Path(self.args.output_dir)):
            super()._save_checkpoint(model, trial)
        if self.is_world_process_zero():
            (Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}" / WHOLE).touch()


class ProgressCallback(TrainerCallback):
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
                f"{format_duration(passed)} passed, {format_duration(left)} left",
            )
        if "eval_mean" in logs:
            self._say(state, f"dev nDCG@10 by layer {self._by_layer(logs, 'eval')}")

    def on_train_end(self, args, state, control, **_):
        self.bar.close()

    def _by_layer(self, logs: dict[str, float], name: str) -> str:
        return " ".join(f"{k}:{logs[f'{name}_layer_{k}']:.3f}" for k in self.exits)

    def _say(self, state, text: str) -> None:
        tqdm.write(f"{self.label}: step {state.global_step}/{state.max_steps}, {text}", file=sys.stderr)
