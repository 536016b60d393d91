"""Embed texts with a bi-encoder, as sentence-transformers does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel

from lwr.common.errors import BadInput
from lwr.config.data.bi_encoder import BiEncoderSection
from lwr.model.loading import count_positions
from lwr.model.prompt import Row
from lwr.scoring.loading import LoadedCheckpoint, load_checkpoint


@dataclass(frozen=True)
class BiEncoder:
    """A model that turns a text into one vector of length 1. H is its hidden size."""

    loaded: LoadedCheckpoint
    settings: BiEncoderSection

    @classmethod
    def load(cls, settings: BiEncoderSection) -> Self:
        """Load the checkpoint.

        Raises:
            BadInput: It is missing or damaged, or texts may be longer than it has positions.
        """
        loaded = load_checkpoint(settings, AutoModel, "right")
        positions = count_positions(loaded.model)
        if positions is not None and settings.max_len > positions:
            raise BadInput(
                f"max_len is {settings.max_len}, but {settings.model} has {positions} positions; lower it to them"
            )
        return cls(loaded, settings)

    def embed_queries(
        self, texts: Sequence[str], on_embedded: Callable[[int], object] | None = None
    ) -> np.ndarray:
        """Return the embeddings of queries, float32 [texts, H]; `on_embedded` gets the size of each batch."""
        return self._embed([self.settings.query_prefix + text for text in texts], on_embedded)

    def embed_passages(
        self, texts: Sequence[str], on_embedded: Callable[[int], object] | None = None
    ) -> np.ndarray:
        """Return the embeddings of passages, float32 [texts, H]; `on_embedded` gets the size of each batch."""
        return self._embed([self.settings.passage_prefix + text for text in texts], on_embedded)

    def _embed(self, texts: Sequence[str], on_embedded: Callable[[int], object] | None) -> np.ndarray:
        """Embed texts; one that has no tokens gets the vector 0, whose cosine with every other is 0.

        Raises:
            FloatingPointError: An embedding is not finite.
        """
        model = self.loaded.model
        embeddings = np.zeros((len(texts), model.config.get_text_config().hidden_size), dtype=np.float32)
        if not texts:
            return embeddings
        encoded = self.loaded.tokenizer(list(texts), truncation=True, max_length=self.settings.max_len)
        types = encoded.get("token_type_ids") or [None] * len(texts)
        rows = [Row(ids, its_types) for ids, its_types in zip(encoded["input_ids"], types, strict=True)]
        read = [i for i, row in enumerate(rows) if len(row) > 0]
        if read:
            embeddings[read] = self.loaded.compute([rows[i] for i in read], self._pool, on_embedded).numpy()
        if not np.isfinite(embeddings).all():
            text = texts[int(np.argwhere(~np.isfinite(embeddings))[0, 0])]
            raise FloatingPointError(
                f"the embedding of {text[:80]!r} is not finite; set precision to float32"
            )
        return embeddings

    def _pool(self, features: dict[str, Tensor]) -> Tensor:
        """Return the embeddings of a batch, [B, H]."""
        states = self.loaded.model(**features).last_hidden_state.float()  # [B, tokens, H]
        mask = features["attention_mask"].unsqueeze(-1)  # [B, tokens, 1]; rows are padded on the right
        match self.settings.pooling:
            case "first":
                pooled = states[:, 0]
            case "last":
                last = mask.sum(dim=1, keepdim=True) - 1  # [B, 1, 1]
                pooled = states.gather(1, last.expand(-1, 1, states.shape[-1]))[:, 0]
            case _:  # mean
                pooled = (states * mask).sum(dim=1) / mask.sum(dim=1)
        return torch.nn.functional.normalize(pooled, dim=-1)
