"""Add low-rank adapters (LoRA, Hu et al. 2021) to the blocks of a reranker and merge them; its heads stay outside."""

from __future__ import annotations

from typing import cast

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lwr.config.training import LoraConfig
from lwr.model.linear.frozen import quantise_frozen
from lwr.model.reranker import LayerwiseReranker
from lwr.model.storage import merge_adapter


def add_lora(reranker: LayerwiseReranker, lora: LoraConfig) -> None:
    """Freeze the backbone of `reranker`, quantise it if asked, and add trainable low-rank adapters to its blocks."""
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model

    if lora.base_precision is not None:
        quantise_frozen(reranker.backbone, reranker.stack.blocks, lora)
    targets = lora.targets
    if targets == "all-linear":
        in_blocks = set(reranker.stack.blocks.modules())
        targets = [
            name
            for name, module in reranker.backbone.named_modules()
            if isinstance(module, nn.Linear | Conv1D) and module in in_blocks
        ]
    adapter = PeftLoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType] - peft takes fractions, too
        lora_dropout=lora.dropout,
        target_modules=targets,
    )
    reranker.backbone = cast(PreTrainedModel, get_peft_model(reranker.backbone, adapter))


def merge_lora(reranker: LayerwiseReranker) -> None:
    """Fold the adapters of `reranker`, if it has any, into its backbone.

    A merged reranker is saved with its weights and needs no base model.
    """
    reranker.backbone = merge_adapter(reranker.backbone)
