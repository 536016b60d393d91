"""The names and the calling convention of FlagEmbedding's layerwise reranker.

Upstream: FlagEmbedding, research/llm_reranker/finetune_for_layerwise/modeling.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.generic import ModelOutput

from lwr.model.reranker import LayerwiseReranker
from lwr.training.losses.layerwise import assign_teachers, layerwise_loss


@dataclass
class RerankerOutput(ModelOutput):
    """The result of `BiEncoderModel.forward`.

    Attributes:
        loss: float32 [] in training mode, else None.
        scores: For each exit float32 [rows], the exit at `start_layer` first.
    """

    loss: Tensor | None = None
    scores: list[Tensor] | None = None


class BiEncoderModel(LayerwiseReranker):
    """A layerwise reranker that is constructed and called as upstream's class of this name.

    Unlike upstream's, it accepts any causal model or encoder.

    Example:
        >>> model = BiEncoderModel(language_model, tokenizer, train_batch_size=4, start_layer=8)
        >>> model.train()(pair=features).loss.backward()
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        train_batch_size: int = 4,
        start_layer: int = 8,
        **options: Any,
    ):
        """Construct the reranker.

        Args:
            model: A Hugging Face model.
            tokenizer: Its tokenizer.
            train_batch_size: Groups in a training batch.
            start_layer: The shallowest exit.
            options: Keyword arguments of `LayerwiseReranker`.
        """
        super().__init__(model, tokenizer, start_layer, **options)
        self.train_batch_size = train_batch_size

    def forward(self, pair: Mapping[str, Tensor]) -> RerankerOutput:
        """Score every row at every exit and, in training mode, compute upstream's loss.

        Args:
            pair: Features of `train_batch_size` x group size rows, group by group, the positive first.

        Raises:
            ValueError: The rows cannot be divided into `train_batch_size` groups of one size.
        """
        scores = self.encode(pair)  # [rows] of each exit
        if not self.training:
            return RerankerOutput(scores=scores)
        rows, groups = len(scores[0]), self.train_batch_size
        if rows % groups:
            raise ValueError(f"{rows} rows do not make {groups} groups of one size")
        grouped = torch.stack(scores).view(len(scores), groups, -1)  # [exits, groups, group size]
        loss = layerwise_loss(grouped, assign_teachers(self.exits, "deepest"))
        return RerankerOutput(loss.total, scores)
