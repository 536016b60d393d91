"""Train a reranker with the layerwise loss, in the Hugging Face Trainer.

The methods of the Trainer whose names begin with an underscore are private to it. The overrides here were checked with
transformers 5.23.0; each says why it is needed.
"""

from __future__ import annotations

import math
import random
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PrinterCallback, Trainer, TrainingArguments

from lwr.common.exits import exit_name
from lwr.common.progress import Progress
from lwr.config.training import TrainingConfig
from lwr.evaluation.flops import derive_shape
from lwr.model.batching import out_of_memory_hint
from lwr.model.cascade_schedule import Compression
from lwr.model.linear.half import warn_if_slow
from lwr.model.reranker import HALF, LayerwiseReranker
from lwr.model.storage import convert_write_errors
from lwr.training.dataset import Batch, TrainingGroup, collate
from lwr.training.dev_evaluation import DevEvaluation
from lwr.training.losses.layerwise import assign_teachers, compression_loss, layerwise_loss
from lwr.training.progress_callback import ProgressCallback
from lwr.training.throughput import Throughput

COMPLETE_MARKER = "whole"
"""Name of the empty file that is written last into each checkpoint."""


def make_optimizer(reranker: LayerwiseReranker, settings: TrainingConfig) -> torch.optim.Optimizer:
    """Return AdamW over all trained parameters; norms, biases and heads have no weight decay.

    The own norms of exits have the learning rate of the backbone, whose final norm they are copies of.
    """
    backbone = [p for p in [*reranker.backbone.parameters(), *reranker.norms.parameters()] if p.requires_grad]
    return torch.optim.AdamW(
        [
            {"params": [p for p in backbone if p.ndim > 1], "weight_decay": settings.weight_decay},
            {"params": [p for p in backbone if p.ndim <= 1], "weight_decay": 0.0},
            {"params": list(reranker.heads), "lr": settings.head_lr, "weight_decay": 0.0},
        ],
        lr=settings.lr,
    )


def _has_finite_gradient(head: Tensor) -> Tensor:
    """Return whether the gradient of a head, or this process's shard of it, is finite: bool []."""
    gradient = torch.zeros_like(head) if head.grad is None else head.grad
    return (gradient.to_local() if isinstance(gradient, DTensor) else gradient).isfinite().all()


class LayerwiseTrainer(Trainer):
    """A Trainer that logs the loss of every exit, evaluates them on dev, and writes small checkpoints."""

    def __init__(
        self,
        reranker: LayerwiseReranker,
        groups: list[TrainingGroup],
        settings: TrainingConfig,
        arguments: TrainingArguments,
        dev_evaluation: DevEvaluation | None,
        label: str,
    ):
        """Prepare a training.

        Args:
            reranker: The model that is trained.
            groups: The training data.
            settings: The `train` section of the config.
            arguments: The same settings in the Trainer's terms.
            dev_evaluation: The evaluation that `evaluate` runs; None if the arguments ask for no evaluation.
            label: Prefix of the progress lines.
        """
        # before the Trainer moves the model to its device, where 4-bit weights are packed and lose their shape
        shape = derive_shape(reranker.backbone)
        self.progress = Progress(label, unit="steps", only_if_long=True, hidden=arguments.process_index > 0)
        super().__init__(
            reranker,
            arguments,
            train_dataset=groups,
            # the Trainer demands a data set, but never iterates it: `evaluate` is overridden
            eval_dataset=None if dev_evaluation is None else dev_evaluation.rows,
            data_collator=partial(  # pyright: ignore[reportArgumentType]
                collate,
                tokenizer=reranker.prompt.tokenizer,
                num_embeddings=reranker.num_embeddings,
                mark_passages=settings.compression is not None,
            ),
            callbacks=[
                ProgressCallback(
                    self.progress,
                    reranker.exits,
                    settings.group_size,
                    settings.loss,
                    dev_evaluation.measure if dev_evaluation else "nDCG@10",
                )
            ],
        )
        # of the evaluations; `set_precision` would ask the heads for the device, to which FSDP moves them later
        reranker.precision = settings.precision
        if settings.precision in HALF:
            warn_if_slow(arguments.device, HALF[settings.precision])
        self.remove_callback(PrinterCallback)
        self.reranker, self.settings, self.dev_evaluation = reranker, settings, dev_evaluation
        self.teachers = assign_teachers(
            reranker.exits, settings.distillation.teacher, settings.distillation.every
        )
        self.exit_weights = [float(settings.exit_weights.get(layer, 1.0)) for layer in reranker.exits]
        # per batch since the last log: [ranking and distillation, exits]
        self.loss_terms: list[Tensor] = []
        if settings.compression is not None:
            reranker.check_compression(Compression.at(max(settings.compression.layers), 2))
        # per batch since the last log, of those that were compressed
        self.compression_terms: list[Tensor] = []
        self.group_names: list[str] = []  # of the batches since the last step of the optimiser
        self.skipped_steps = 0  # since the last log, by the scaler of float16
        self.throughput = Throughput(
            shape,
            arguments.device,
            HALF.get(settings.precision, torch.float32),
            frozen_backbone=settings.lora is not None,
        )

    def create_accelerator_and_postprocess(self) -> None:
        """Make the accelerator, and let FSDP shard float32 weights, on CPUs, too.

        Overridden because accelerate leaves out FSDP on CPUs, and because it would gather weights in bfloat16 under
        autocast, heads and norms as well.
        """
        super().create_accelerator_and_postprocess()
        arguments: dict[str, Any] | None = self.args.fsdp_plugin_args
        if arguments is None:
            return
        state = self.accelerator.state
        # of which every new state is a copy
        state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
        state.fsdp_plugin = FullyShardedDataParallelPlugin(**arguments)
        self.is_fsdp_enabled = True

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """Return the optimiser. Overridden because a Trainer that shards its model takes none as an argument."""
        if self.optimizer is None:
            self.optimizer = make_optimizer(self.reranker, self.settings)
        return self.optimizer

    def training_step(self, model, inputs: Batch, num_items_in_batch=None):
        """Do one forward and backward pass. Raises MemoryError with the shape of the batch if memory runs out."""
        rows, tokens = inputs["features"]["attention_mask"].shape
        hint = (
            f"a batch of {rows} rows of {tokens} tokens; lower groups_per_batch (and raise accumulation), "
            "passage_max_len or group_size, or set recompute: blocks"
        )
        with out_of_memory_hint(hint):
            return super().training_step(model, cast(dict[str, Any], inputs), num_items_in_batch)

    def compute_loss(self, model, inputs: Batch, return_outputs=False, num_items_in_batch=None):
        """Compute the layerwise loss of a batch, and keep its terms for the next log.

        Raises:
            FloatingPointError: The loss is not finite.
        """
        self.group_names += inputs["group_names"]
        groups, distillation = len(inputs["group_names"]), self.settings.distillation
        compression, exits = self.draw_compression(), len(self.reranker.exits)
        # [exits and compressed exits, rows]; another process or batch of the step has the same compression
        both = model(inputs["features"], compression) if compression else model(inputs["features"])
        scores, compressed = both[:exits], both[exits:]
        loss = layerwise_loss(
            scores.view(len(scores), groups, -1),  # [exits, groups, group size]
            self.teachers,
            distillation.temperature,
            self.exit_weights,
            inputs["teacher_scores"] if distillation.external else None,
            self.settings.loss,
        )
        terms = torch.stack([loss.ranking, loss.distillation]).detach()  # [2, exits]
        if not torch.isfinite(loss.total):
            is_finite = terms.isfinite().all(dim=0).tolist()  # [exits]
            exits = [layer for layer, fine in zip(self.reranker.exits, is_finite, strict=True) if not fine]
            # all terms may be finite, and their weighted sum still too large
            raise self._not_finite(f"loss of exits {exits or self.reranker.exits}", inputs["group_names"])
        self.loss_terms.append(terms)
        mask, total = inputs["features"]["attention_mask"], loss.total
        self.throughput.add_batch(mask)
        if compression is not None:
            read = len(compressed)  # the deepest exits
            term = compression_loss(
                compressed.view(read, groups, -1),
                scores[-read:].view(read, groups, -1),
                distillation.temperature,
                self.exit_weights[-read:],
            )
            if not torch.isfinite(term):
                raise self._not_finite(f"loss with compression {compression}", inputs["group_names"])
            total = total + term
            self.compression_terms.append(term.detach())
            self.throughput.add_batch(mask, inputs["features"]["passage_mask"], compression)
        return (total, scores) if return_outputs else total

    def draw_compression(self) -> Compression | None:
        """Draw the compression of the current step by its number and the seed; None: passages stay complete."""
        if self.settings.compression is None:
            return None
        rng = random.Random(f"{self.args.seed}:{self.state.global_step}")
        layer = rng.choice(self.settings.compression.layers)
        ratio = rng.choice(self.settings.compression.ratios)
        return Compression.at(layer, ratio) if ratio > 1 else None

    def _clip_grad_norm(self, model):
        """Clip the gradients, and raise FloatingPointError if one is not finite.

        Overridden because no public hook sees the norm before the step of the optimiser. A gradient that is not finite
        would spoil the weights, and after the last step nothing would show it. In float16, such a gradient may come
        from the factor that losses are scaled by: the optimiser then skips the step, and the factor is halved. Only
        without such a factor is it an error.
        """
        heads = [self.reranker.head(layer) for layer in self.reranker.exits]
        # computed before clipping, which spreads NaN to every gradient; read only if needed, as reading waits for a GPU
        is_finite = torch.stack([_has_finite_gradient(head) for head in heads])  # [exits]
        norm: Any = super()._clip_grad_norm(model)
        scaler = self.accelerator.scaler  # None but in float16
        if scaler is not None and scaler.get_scale() > 1:
            self.skipped_steps += not math.isfinite(norm)
        elif not math.isfinite(norm):
            of_processes: Any = self.accelerator.gather(is_finite[None])  # [processes, exits]
            fine = of_processes.all(dim=0).tolist()
            exits = [layer for layer, is_fine in zip(self.reranker.exits, fine, strict=True) if not is_fine]
            source = f"exits {exits}" if exits else "the backbone"
            raise self._not_finite(f"gradient of {source}", self.group_names)
        self.group_names.clear()
        return norm

    def _not_finite(self, what: str, group_names: list[str]) -> FloatingPointError:
        shown = ", ".join(group_names[:8]) + (", …" if len(group_names) > 8 else "")
        return FloatingPointError(
            f"the {what} is not finite after step {self.state.global_step}, in a batch of the groups {shown}; "
            "lower lr or head_lr, or use precision: float32; look at these groups"
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the loss terms of every exit, averaged over batches and processes, and the throughput."""
        if "loss" in logs and self.loss_terms:
            mean = torch.stack(self.loss_terms).mean(dim=0)  # [2, exits]
            reduced: Any = self.accelerator.reduce(mean, "mean")
            ranking, distillation = reduced.tolist()
            self.loss_terms.clear()
            for i, layer in enumerate(self.reranker.exits):
                logs[f"{self.settings.loss}_{exit_name(layer)}"] = ranking[i]
                logs[f"distillation_{exit_name(layer)}"] = distillation[i]
            if self.compression_terms:
                logs["compression"] = torch.stack(self.compression_terms).mean().item()
                self.compression_terms.clear()
            logs |= self.throughput.pop_rates()
            if self.accelerator.scaler is not None:
                logs["skipped_steps"], self.skipped_steps = self.skipped_steps, 0
                if not math.isfinite(logs["grad_norm"]):  # that of a skipped step
                    del logs["grad_norm"]
        super().log(logs, start_time)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        """Log the measure on dev of every exit, and their mean; the arguments are the Trainer's and not used."""
        if self.dev_evaluation is None:
            raise ValueError("this training has no dev evaluation")
        scored, pairs = 0, len(self.dev_evaluation.rows)

        def show_pairs(scored_now: int) -> None:
            nonlocal scored
            scored += scored_now
            self.progress.current = f"dev evaluation: {scored}/{pairs} pairs"

        if self.is_fsdp_enabled:  # blocks gather their weights themselves, heads and norms only in `forward`
            cast(FSDPModule, self.reranker).unshard()
        by_layer = self.dev_evaluation.evaluate(self.reranker, show_pairs)
        if self.is_fsdp_enabled:
            cast(FSDPModule, self.reranker).reshard()
        self.progress.current = ""
        metrics = {f"eval_{exit_name(layer)}": value for layer, value in by_layer.items()}
        metrics["eval_mean"] = sum(by_layer.values()) / len(by_layer)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Save the trained parameters alone. Under FSDP the Trainer does not call this.

        Overridden because the Trainer has no option for it, and under LoRA a checkpoint would contain the frozen
        backbone.
        """
        trained = {name for name, parameter in self.reranker.named_parameters() if parameter.requires_grad}
        state = {name: tensor for name, tensor in self.reranker.state_dict().items() if name in trained}
        super()._save(output_dir, state)

    def _issue_warnings_after_load(self, load_result) -> None:
        """Raise ValueError if a checkpoint has parameters that the model does not have.

        Overridden because the Trainer warns of missing parameters, although frozen ones are left out on purpose, and
        ignores unexpected ones but for a warning.
        """
        if load_result.unexpected_keys:
            raise ValueError(
                f"{self.args.output_dir}: checkpoint of another model, with {load_result.unexpected_keys}"
            )

    def _save_checkpoint(self, model, trial) -> None:
        """Save a checkpoint and mark it as complete.

        Overridden because the Trainer writes into the final folder, where a killed process leaves an incomplete
        checkpoint, and because its write errors do not name that folder.
        """
        folder = Path(cast(str, self.args.output_dir))
        with convert_write_errors(folder):
            super()._save_checkpoint(model, trial)
        if self.is_world_process_zero():
            (folder / f"checkpoint-{self.state.global_step}" / COMPLETE_MARKER).touch()
