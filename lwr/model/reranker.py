"""LayerwiseReranker: a backbone with a relevance head at every layer from `start_layer` to the last.

Upstream: FlagEmbedding, research/llm_reranker/finetune_for_layerwise/modeling.py, class `BiEncoderModel`, whose calling
convention `lwr.compat` keeps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lwr.config.model import BaseModelConfig, Pooling, PromptTemplate
from lwr.model import storage
from lwr.model.batch_layout import Packed, Padded
from lwr.model.batching import make_batches, out_of_memory_hint, pad
from lwr.model.cascade_schedule import Schedule
from lwr.model.layer_hooks import LayerStack, find_layer_stack, run_to
from lwr.model.loading import yes_row_of
from lwr.model.packing import find_positions
from lwr.model.prompt import Prompt, Row

CPU_TOKENS, GPU_TOKENS = 2048, 16384  # a CPU's caches hold the states of some thousand tokens


@dataclass(frozen=True)
class Ranking:
    """order: int64 [passages], places from best to worst. By place: layers, int64, the last exit that read a passage,
    and scores, float32, which it had there."""

    order: np.ndarray
    layers: np.ndarray
    scores: np.ndarray


class LayerwiseReranker(nn.Module):
    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        start_layer: int = 8,
        *,
        pooling: Pooling | None = None,
        shared_head: bool = False,
        initial_heads: Tensor | Mapping[int, Tensor] | None = None,
        template: PromptTemplate = PromptTemplate(),  # noqa: B008 - frozen
        query_max_len: int = 32,
        passage_max_len: int = 224,
        base: BaseModelConfig | None = None,
    ):
        """model: a Hugging Face backbone, or a causal language model, of which only the backbone is kept.
        pooling: what a head reads; None: the last token of a causal backbone, the mean of an encoder.
        initial_heads: [hidden] for all exits or layer -> [hidden]; None: the vocabulary head's row of `Yes`
            where `model` has one and a tokenizer is given, else random.
        template: the prompt of a causal backbone; an encoder has its tokenizer's pair format.
        query_max_len, passage_max_len: tokens (see `Prompt`).
        base: where the backbone came from; an adapter can't be saved without.

        Raises UnsupportedBackbone, and ValueError where `start_layer` is no layer of the backbone.
        """
        super().__init__()
        if isinstance(model, PeftModel):
            raise ValueError(
                "give the model without its adapter, then call add_lora: heads stay outside peft"
            )
        if initial_heads is None and tokenizer is not None and model.get_output_embeddings() is not None:
            initial_heads = yes_row_of(model, tokenizer)
        self.backbone: nn.Module = model.base_model
        self.tokenizer = tokenizer
        self.config = self.backbone.config
        self.stack: LayerStack = find_layer_stack(self.backbone)
        self.first_position = find_positions(self.backbone, self.stack)  # None: rows can't be packed
        if not 1 <= start_layer <= self.stack.num_layers:
            raise ValueError(f"start_layer is {start_layer}, but layers are 1..{self.stack.num_layers}")
        for module in self.stack.unused:
            module.requires_grad_(False)

        self.start_layer = start_layer
        self.exits = list(range(start_layer, self.stack.num_layers + 1))
        self.pooling: Pooling = pooling or ("last" if self.stack.causal else "mean")
        if self.pooling == "first" and self.stack.causal:
            raise ValueError(
                "pooling is `first`, but in a causal backbone the first token has read nothing else"
            )
        self.shared_head = shared_head
        self.heads = nn.ParameterList(self._first_weights(initial_heads))
        self.prompt = tokenizer and Prompt(
            tokenizer, template if self.stack.causal else None, query_max_len, passage_max_len
        )
        self.base = base

    def _first_weights(self, initial: Tensor | Mapping[int, Tensor] | None) -> list[Tensor]:
        """float32 [hidden] for each head."""
        hidden, device = self.config.get_text_config().hidden_size, self.backbone.device
        layers = self.exits[-1:] if self.shared_head else self.exits
        if initial is None:
            return [torch.normal(0.0, 0.02, (hidden,), device=device) for _ in layers]
        rows = dict.fromkeys(layers, initial) if isinstance(initial, Tensor) else initial
        missing = [k for k in layers if k not in rows]
        if missing:
            raise ValueError(f"no head for layers {missing}: the checkpoint has heads at {sorted(rows)}")
        return [rows[k].detach().to(device, torch.float32).clone() for k in layers]

    # --- scoring ---------------------------------------------------------------------------------------

    def encode(self, features: Mapping[str, Tensor], layers: Sequence[int] | None = None) -> list[Tensor]:
        """Scores at each of `layers` (default: every exit), each float32 [batch]; no deeper block runs.

        features: `input_ids`, `attention_mask` int64 [batch, tokens], padded on either side (an encoder with
        learnt positions, as BERT: on the right); optionally `token_type_ids`, `position_ids`, and upstream's
        `labels`, whose one entry above -100 marks the answer: then the token before it is read.
        """
        layers = self.exits if layers is None else list(layers)
        self._known(layers)
        layout, scores = self._layout(features), {}
        in_order = layout.rows.argsort()

        def look(layer: int, hidden: Tensor) -> None:
            scores[layer] = self._score(layer, layout.pool(hidden, self.stack.norm))[in_order]

        run_to(self.backbone, self.stack, layers, look, layout.dim, **layout.inputs)
        return [scores[k] for k in layers]

    def cascade(
        self,
        features: Mapping[str, Tensor],
        keep: Mapping[int, int],
        last: int,
        tokens_at_once: int | None = None,
    ) -> Tensor:
        """Scores float32 [exits used, batch] of one forward pass that lets rows go; NaN for those that had left.

        features: the candidates of one query, as `encode` takes them. keep: layer -> how many go on from there, the
        best by their scores (of equals the first in the batch). last: the layer where who is left is scored.
        tokens_at_once: about how many a block computes at a time; None: all.
        """
        layers = [*sorted(keep), last]
        self._known(layers)
        layout, batch = self._layout(features), len(features["input_ids"])
        scores = torch.full((len(layers), batch), torch.nan, device=features["input_ids"].device)

        def look(layer: int, hidden: Tensor) -> Tensor | None:
            here = self._score(layer, layout.pool(hidden, self.stack.norm))
            scores[layers.index(layer), layout.rows] = here
            if layer == last:
                return None
            in_order = layout.rows.argsort()
            best = here[in_order].argsort(descending=True, stable=True)[: keep[layer]]
            return layout.keep(in_order[best].sort().values)

        parts = tokens_at_once and (lambda: layout.parts(tokens_at_once))
        run_to(self.backbone, self.stack, layers, look, layout.dim, parts, **layout.inputs)
        return scores

    def _known(self, layers: Sequence[int]) -> None:
        unknown = [k for k in layers if k not in self.exits]
        if unknown:
            raise ValueError(f"layers {unknown} have no head; exits are {self.exits[0]}..{self.exits[-1]}")

    @property
    def can_share_prefix(self) -> bool:
        """Whether what all rows of a batch start with is computed once, where that pays."""
        return self.first_position is not None and self.stack.causal and self.pooling == "last"

    def _layout(self, features: Mapping[str, Tensor]) -> Padded | Packed:
        if self.first_position is None:
            return Padded(features, self.stack.causal, self.pooling)
        return Packed(features, self.pooling, self.first_position, self.can_share_prefix)

    def head(self, layer: int) -> Tensor:
        """float32 [hidden]."""
        return self.heads[0 if self.shared_head else layer - self.start_layer]

    def _score(self, layer: int, state: Tensor) -> Tensor:
        """state [rows, hidden] -> float32 [rows], of each row whatever stands beside it in the batch.

        A matrix-vector product would round by a row's place, and equal passages would not score alike. bfloat16
        scores tie, and ties decide rankings.
        """
        with torch.autocast(state.device.type, enabled=False):
            return (state.float() * self.head(layer).float()).sum(dim=-1)

    # --- ranking texts ---------------------------------------------------------------------------------

    @torch.inference_mode()
    def score_rows(
        self,
        rows: Sequence[Row],
        layers: Sequence[int],
        tokens_per_batch: int | None = None,
        precision: str = "float32",
    ) -> np.ndarray:
        """float32 [layers, rows]: the scores of tokenised pairs, in batches under a budget of tokens.

        tokens_per_batch: None takes `default_tokens_per_batch`. The reranker must be in evaluation mode. Raises MemoryError
        that names the batch.
        """
        scores = np.empty((len(layers), len(rows)), dtype=np.float32)
        budget = tokens_per_batch or self.default_tokens_per_batch
        for batch in make_batches(rows, budget, self.can_share_prefix):
            longest = max(len(rows[i]) for i in batch)
            fix = f"{len(batch)} rows of up to {longest} tokens; set tokens_per_batch below {budget}"
            with out_of_memory_hint(fix), self._autocast(precision):
                encoded = self.encode(self._features([rows[i] for i in batch]), layers)
            scores[:, batch] = torch.stack(encoded).cpu().numpy()
        return scores

    @torch.inference_mode()
    def rank_rows(
        self,
        rows: Sequence[Row],
        schedule: Schedule,
        tokens_per_batch: int | None = None,
        precision: str = "float32",
    ) -> Ranking:
        """One query's tokenised pairs, ranked by one exit or by a cascade; of equals the first given comes first.

        The candidates of one exit are batched; of a cascade they share one pass, whose blocks compute as many at a time
        as a batch has.
        """
        if not schedule.keep or not rows:
            (scores,) = self.score_rows(rows, [schedule.last], tokens_per_batch, precision)
            return Ranking(np.argsort(-scores, kind="stable"), np.full(len(rows), schedule.last), scores)
        budget = tokens_per_batch or self.default_tokens_per_batch
        fix = f"a cascade of {len(rows)} rows, some {budget} tokens at a time; set tokens_per_batch lower"
        with out_of_memory_hint(fix), self._autocast(precision):
            scores = self.cascade(self._features(rows), dict(schedule.keep), schedule.last, budget)
        by_stage = scores.cpu().numpy()
        stage = (~np.isnan(by_stage)).sum(axis=0) - 1  # who left late, stands above who left early
        scores = by_stage[stage, np.arange(len(rows))]
        return Ranking(np.lexsort((-scores, -stage)), np.array(schedule.layers)[stage], scores)

    def score(
        self,
        pairs: Sequence[tuple[str, str]],
        layer: int | None = None,
        *,
        layers: Sequence[int] | Literal["all"] | None = None,
        normalize: bool = False,
    ) -> np.ndarray:
        """Scores of (query, passage) pairs: float32 [pairs] at one layer, the deepest where none is given, or
        [layers, pairs] at several, from one pass. normalize: squeezed into 0..1 by the logistic function."""
        if layer is not None and layers is not None:
            raise ValueError(f"layer is {layer} and layers {layers}: give one of the two")
        chosen = [layer or self.exits[-1]] if layers is None else self.exits if layers == "all" else layers
        scores = self.score_rows(self.prompt.rows(pairs), chosen)
        scores = logistic(scores) if normalize else scores
        return scores[0] if layers is None else scores

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        layer: int | None = None,
        *,
        cascade: str | Schedule | None = None,
        top_k: int | None = None,
        return_documents: bool = True,
        normalize: bool = False,
    ) -> list[dict[str, Any]]:
        """The documents best first, as sentence-transformers' `CrossEncoder.rank` gives them: corpus_id (place in
        `documents`), score, text.

        layer: the exit that ranks; None: the deepest. cascade: `2:20 4:10 6` instead; scores are then of the last exit
        that read a document, told as `layer`, and can only be compared within one.
        """
        if layer is not None and cascade is not None:
            raise ValueError(f"layer is {layer} and cascade {str(cascade)!r}: give one of the two")
        schedule = Schedule.single(layer or self.exits[-1])
        if cascade is not None:
            schedule = cascade if isinstance(cascade, Schedule) else Schedule.parse(cascade)
        ranking = self.rank_rows(self.prompt.rows([(query, text) for text in documents]), schedule)
        scores = logistic(ranking.scores) if normalize else ranking.scores
        ranked = []
        for i in ranking.order[:top_k].tolist():
            entry = {"corpus_id": i, "score": float(scores[i])}
            entry |= {"text": documents[i]} if return_documents else {}
            ranked.append(entry | ({"layer": int(ranking.layers[i])} if schedule.keep else {}))
        return ranked

    @property
    def default_tokens_per_batch(self) -> int:
        """Tokens of a forward pass where nobody says how many."""
        return CPU_TOKENS if self.heads[0].device.type == "cpu" else GPU_TOKENS

    def _features(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        device = self.heads[0].device
        return {name: tensor.to(device) for name, tensor in pad(rows, self.tokenizer).items()}

    def _autocast(self, precision: str) -> torch.autocast:
        return torch.autocast(self.heads[0].device.type, torch.bfloat16, enabled=precision == "bfloat16")

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return the scores of every exit, float32 [exits, batch], for features as `encode` takes them."""
        return torch.stack(self.encode(features))

    # --- on disk ---------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Weights or adapter, heads, tokenizer, and lwr.json: all that `from_pretrained` needs but the base
        model that an adapter names."""
        layers = self.exits[-1:] if self.shared_head else self.exits
        names = ["shared"] if self.shared_head else [f"layer_{k}" for k in layers]
        about = {
            "depth": self.stack.num_layers,
            "start_layer": self.start_layer,
            "shared_head": self.shared_head,
            "pooling": self.pooling,
            "template": self.prompt.template and self.prompt.template.model_dump(),
            "query_max_len": self.prompt.query_max_len,
            "passage_max_len": self.prompt.passage_max_len,
        }
        heads = dict(zip(names, self.heads, strict=True))
        storage.write(Path(folder), self.backbone, heads, self.tokenizer, self.base, about)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        revision: str | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        attention: str = "sdpa",
    ) -> Self:
        """A saved reranker, or an upstream layerwise checkpoint, in evaluation mode.

        device: None takes the GPU where there is one.
        Raises ValueError where a part is missing, or an adapter meets another base than it was trained on.
        """
        read = storage.read(str(model), revision, dtype, attention)
        reranker = cls(read.backbone, read.tokenizer, **read.options)
        if read.adapter is not None:
            reranker.backbone = PeftModel.from_pretrained(read.backbone, read.adapter).to(dtype)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return reranker.to(device).eval()


def logistic(scores: np.ndarray) -> np.ndarray:
    """Into 0..1; of the same kind of float."""
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-scores))
