"""LayerwiseReranker: a backbone with a relevance head at every layer, or each n-th, from `start_layer` to the last.

Upstream: FlagEmbedding, research/llm_reranker/finetune_for_layerwise/modeling.py, class `BiEncoderModel`, whose calling
convention `lwr.compat` keeps.

Letters in shape comments: B rows of the batch, R remaining rows, C candidates of a query, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from itertools import pairwise
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, Self, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lwr.common.exits import FIRST_STAGE, describe_layers, exit_name, layers_with_head, read_name
from lwr.common.texts import check_documents, check_pairs, check_text, is_single_pair
from lwr.config.evaluation import WindowPool, Windows
from lwr.config.model import Attention, BaseModelConfig, Pooling, PromptTemplate
from lwr.config.section import ScoringPrecision
from lwr.formats.calibration import Calibration, lines_of_layers, probabilities_of
from lwr.formats.fusion import Fusion, fuse_scores
from lwr.model import storage
from lwr.model.batch_layout import PackedLayout, PaddedLayout
from lwr.model.batching import make_batches, out_of_memory_hint, pad, pool_windows
from lwr.model.cascade_schedule import (
    NOT_FINITE,
    Compression,
    Deadline,
    Ranking,
    RankingPlan,
    Schedule,
    Weights,
    layers_to_score,
    plan_ranking,
)
from lwr.model.layer_hooks import (
    BlockHook,
    EndOfPass,
    LayerCallback,
    LayerStack,
    UnsupportedBackbone,
    find_layer_stack,
    run_to,
)
from lwr.model.linear.half import warn_if_slow
from lwr.model.linear.int8 import quantise_blocks
from lwr.model.linear.onednn import restore_linear_layers, use_onednn
from lwr.model.loading import (
    check_row_limit,
    copy_norm,
    count_embeddings,
    count_positions,
    make_heads,
    yes_row_of,
)
from lwr.model.packing import enable_packing, mixes_by_attention
from lwr.model.prompt import LinePrompts, Prompt, Row

CPU_TOKENS_PER_BATCH = 2048  # the states of a few thousand tokens fit into a CPU's caches
GPU_TOKENS_PER_BATCH = 16384
HALF: dict[str, torch.dtype] = {"bfloat16": torch.bfloat16, "float16": torch.float16}
"""Precision of 16 bits -> the dtype of autocast."""


class LayerwiseReranker(nn.Module):
    """A transformer that scores query-passage pairs at every layer, or each n-th, from `start_layer` to the last.

    A head is a vector [H] in float32. The score of a layer is its product with the state of a pair at that layer,
    pooled over tokens and normalised by the backbone's final norm. Blocks after the deepest requested layer do not run.

    Example:
        >>> from lwr import LayerwiseReranker
        >>> reranker = LayerwiseReranker.from_pretrained("path/to/model")
        >>> reranker.rank("read a csv file", ["def read_csv(path): ...", "def to_csv(path): ..."], layer=4)
        >>> reranker.score([("read a csv file", "def read_csv(path): ...")], layers="all")  # [exits, pairs]

    Attributes:
        backbone: The Hugging Face model without its language-model head; with an adapter, wrapped by peft.
        stack: Its blocks and final norm.
        attention: The attention that the backbone was loaded with, before its rows were packed.
        num_embeddings: The number of token ids that have an embedding.
        exits: The layers that have a head, ascending.
        heads: One parameter [H] for each exit, or a single one that all exits share.
        norms: The own norm of each exit, in float32; empty if all exits share the backbone's final norm.
        first_position: The index of a packed row's first position; None if rows are padded instead of packed.
        fusion: The weights of fused scores; None: rankings cannot be fused. They belong to one first stage.
        calibration: The lines that turn scores into probabilities of relevance, which `lwr calibrate` fits; None: there
            are none.
        precision: The data type in which texts are scored and ranked; see `set_precision`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        start_layer: int = 8,
        *,
        pooling: Pooling | None = None,
        head_every: int = 1,
        shared_head: bool = False,
        own_norms: bool = False,
        initial_heads: Tensor | Mapping[int, Tensor] | None = None,
        template: PromptTemplate = PromptTemplate(),  # noqa: B008 - frozen
        query_max_len: int = 32,
        passage_max_len: int = 224,
        base: BaseModelConfig | None = None,
        fusion: Fusion | None = None,
        calibration: Calibration | None = None,
        score_cap: float | None = None,
    ):
        """Put heads on a backbone.

        Args:
            model: A backbone, or a causal language model, of which only the backbone is kept.
            tokenizer: Its tokenizer; needed for everything that takes texts.
            start_layer: The shallowest layer with a head.
            pooling: The state that a head reads. None: that of the last token if the backbone is causal, else the mean
                over tokens.
            head_every: The distance between layers with a head. The last layer always has one.
            shared_head: Whether all exits share one head.
            own_norms: Whether each exit has its own copy of the backbone's final norm.
            initial_heads: [H] for all exits, or layer -> [H]. None: the row of `Yes` in the vocabulary head if `model`
                has one and a tokenizer is given, else random.
            template: The prompt of a causal backbone. An encoder uses its tokenizer's format of pairs.
            query_max_len: Tokens of a query (see `Prompt`).
            passage_max_len: Tokens of a passage (see `Prompt`).
            base: The checkpoint of the backbone. An adapter cannot be saved without it.
            fusion: The weights of fused scores, which `lwr fuse` fits.
            calibration: The lines that turn scores into probabilities, which `lwr calibrate` fits.
            score_cap: A score s becomes score_cap * tanh(s / score_cap), as in Gemma 2; None: it stays as it is.

        Raises:
            UnsupportedBackbone: The backbone's layers cannot be observed.
            ValueError: `start_layer` is not a layer, a head is missing, `pooling` does not fit the backbone, it
                has no final norm of which exits could have their own, or rows may have more tokens than it has
                positions.
        """
        super().__init__()
        if storage.has_adapter(model):
            raise ValueError(
                "give the model without its adapter, then call lwr.model.linear.lora.add_lora: heads stay outside peft"
            )
        if initial_heads is None and tokenizer is not None and model.get_output_embeddings() is not None:
            initial_heads = yes_row_of(model, tokenizer)
        self.backbone = cast(PreTrainedModel, model.base_model)
        self.tokenizer = tokenizer
        self.config = self.backbone.config
        self.attention: str = self.config._attn_implementation or "eager"
        self.num_embeddings: int = count_embeddings(self.backbone)
        self.stack: LayerStack = find_layer_stack(self.backbone)
        self.first_position = enable_packing(self.backbone, self.stack)
        for module in self.stack.unused:
            module.requires_grad_(False)

        num_layers, causal = self.stack.num_layers, self.stack.causal
        if not 1 <= start_layer <= num_layers:
            raise ValueError(f"start_layer is {start_layer}, but layers are 1..{num_layers}")
        if pooling == "first" and causal:
            raise ValueError(
                "pooling is `first`, but in a causal backbone the first token has read nothing else"
            )
        if head_every < 1:
            raise ValueError(f"head_every is {head_every}; give a number of layers from 1 on")
        self.start_layer, self.head_every = start_layer, head_every
        self.exits = layers_with_head(start_layer, num_layers, head_every)
        self.pooling: Pooling = pooling or ("last" if causal else "mean")
        self.shared_head = shared_head
        head_layers = self.exits[-1:] if shared_head else self.exits
        self.heads = nn.ParameterList(make_heads(head_layers, self.backbone, initial_heads))
        self.norms = nn.ModuleList([copy_norm(self.stack.norm) for _ in self.exits] if own_norms else [])
        if own_norms:
            self.stack.norm.requires_grad_(False)  # no head reads its output
        self._prompt: Prompt | None = None
        if tokenizer is not None:
            self._prompt = Prompt(tokenizer, template if causal else None, query_max_len, passage_max_len)
            check_row_limit(self._prompt, count_positions(self.backbone))
        self.base = base
        self.fusion = fusion
        self.calibration = calibration
        self.score_cap = score_cap
        self.precision: ScoringPrecision = "float32"

    @property
    def prompt(self) -> Prompt:
        """The prompt that writes and tokenises pairs.

        Raises:
            ValueError: The reranker has no tokenizer.
        """
        if self._prompt is None:
            raise ValueError("this reranker has no tokenizer, which texts need: give LayerwiseReranker one")
        return self._prompt

    # --- Scoring features ---

    def forward(self, features: Mapping[str, Tensor], compression: Compression | None = None) -> Tensor:
        """Score a batch at every exit. Training calls this; see `encode` for the arguments.

        Returns:
            float32 [exits, B]; with a compression [exits + compressed exits, B]: behind them, from a second pass, the
            scores of compressed passages at the exits that read them (`Compression.exits_after`).
        """
        scores = self.encode(features)
        if compression is not None:
            scores += self.encode(features, compression.exits_after(self.exits), compression)
        return torch.stack(scores)

    def encode(
        self,
        features: Mapping[str, Tensor],
        layers: Sequence[int] | None = None,
        compression: Compression | None = None,
        narrow: bool = False,
    ) -> list[Tensor]:
        """Score a batch at several layers in one pass. No deeper block runs.

        Args:
            features: `input_ids` and `attention_mask`, int64 [B, tokens], padded on either side (an encoder with learnt
                positions, such as BERT: on the right). Optionally `token_type_ids`, `position_ids`, and upstream's
                `labels`, of which the one entry above -100 marks the answer: the head then reads the token before it.
            layers: The layers, in any order; None: every exit.
            compression: Where passage tokens become fewer, which `features` must then mark by `passage_mask` (see
                `lwr.model.batching.pad`); None: nowhere.
            narrow: Whether the last block computes only the token of each row that heads read, if they read one and
                the backbone can be packed. That is faster; the last bits of scores change. Without gradients.

        Returns:
            float32 [B] for each layer.

        Raises:
            UnsupportedBackbone: The tokens of the backbone cannot be compressed.
            ValueError: A layer has no head, the compression has a step after the last layer or deeper, or the features
                mark no passages.
        """
        layers = self.exits if layers is None else list(layers)
        self._check_layers(layers)
        steps = self._steps(compression, max(layers))
        layout = self._lay_out(features, steps)
        scores: dict[int, Tensor] = {}

        def score_layer(layer: int, hidden: Tensor) -> None:
            scores[layer] = self._score(layer, layout, hidden)[layout.rows.argsort()]

        self._run(layout, layers, score_layer, steps, narrow=narrow)
        return [scores[k] for k in layers]

    def cascade(
        self,
        features: Mapping[str, Tensor],
        keep: Mapping[int, int],
        last: int,
        tokens_at_once: int | None = None,
        *,
        weights: Weights | None = None,
        first_stage: np.ndarray | None = None,
        compression: Compression | None = None,
        owners: Tensor | None = None,
        pool: WindowPool = "max",
    ) -> Tensor:
        """Score the candidates of one query in one pass that drops candidates on the way.

        Args:
            features: The candidates, as `encode` takes them.
            keep: Layer -> number of candidates that remain after it, the best by its scores; of equal ones the first in
                the batch.
            last: The layer that scores the candidates that remain at the end.
            tokens_at_once: About how many tokens a block computes at a time; None: all.
            weights: Layer -> weights of the fused scores by which it drops and ranks; None: a layer's own scores.
            first_stage: float64 [candidates], the normalised scores of the first stage, which `weights` may name.
            compression: As for `encode`. At a layer that has both, candidates are dropped first.
            owners: int64 [B], ascending from 0: the candidate of which a row has a window; None: each row is one. All
                windows of a candidate are dropped together.
            pool: How the scores of a candidate's windows become one.

        Returns:
            float32 [layers of the cascade, candidates], or float64 if fused; NaN for candidates that were dropped
            before a layer.
        """
        stages = [*sorted(keep), last]
        layers = layers_to_score(stages, weights)
        self._check_layers(layers)
        steps = self._steps(compression, last)
        layout = self._lay_out(features, steps)
        device = features["input_ids"].device
        if owners is None:
            owners = torch.arange(len(features["input_ids"]), device=device)
        dtype = torch.float32 if weights is None else torch.float64
        unknown = torch.full((int(owners[-1]) + 1,), torch.nan, device=device)  # [C]
        known: dict[str, Tensor] = {}  # name of a feature -> [C]
        if first_stage is not None:
            known[FIRST_STAGE] = torch.as_tensor(first_stage, device=device)
        scores = unknown.to(dtype).repeat(len(stages), 1)  # [stages, C]
        reduce = "amax" if pool == "max" else "mean"

        def score_and_drop(layer: int, hidden: Tensor) -> Tensor | None:
            of_rows = self._score(layer, layout, hidden)  # [R], in the order of the layout
            of_row = owners[layout.rows]  # [R], candidates
            of_layer = unknown.scatter_reduce(0, of_row, of_rows, reduce, include_self=False).to(dtype)  # [C]
            if weights is not None:
                known[read_name(layer, steps)] = of_layer
                if layer not in stages:
                    return None
                of_layer = fuse_scores(weights[layer], known)
            remaining = of_row.unique()  # ascending, so that a stable sort prefers the first in the batch
            scores[stages.index(layer), remaining] = of_layer[remaining]
            if layer == last:
                return None
            best = of_layer[remaining].argsort(descending=True, stable=True)[: keep[layer]]
            return layout.keep(torch.isin(of_row, remaining[best]).nonzero().squeeze(1))

        self._run(layout, layers, score_and_drop, steps, tokens_at_once)
        return scores

    def _run(
        self,
        layout: PaddedLayout | PackedLayout,
        layers: Sequence[int],
        on_layer: LayerCallback,
        steps: Sequence[tuple[int, int]],
        tokens_at_once: int | None = None,
        narrow: bool = False,
    ) -> None:
        """Run a pass up to the deepest layer (see `run_to`), which resumes with fewer tokens after each step."""
        narrow_block: BlockHook | None = None
        if narrow and isinstance(layout, PackedLayout) and layout.pooling != "mean":
            narrow_block = layout.narrow
        make_chunks = None if tokens_at_once is None else partial(layout.chunks, tokens_at_once)
        start: tuple[int, Tensor] | None = None
        for end, ratio in [*steps, (max(layers), 1)]:
            hidden = run_to(
                self.backbone,
                self.stack,
                layers,
                on_layer,
                layout.dim,
                make_chunks,
                start,
                end,
                narrow_block if end == max(layers) else None,
                **layout.inputs,
            )
            if ratio > 1:
                start = end, layout.compress(hidden, ratio)

    def _steps(self, compression: Compression | None, last: int) -> list[tuple[int, int]]:
        """Return the (layer, ratio) steps of a pass that ends at layer `last`.

        Raises:
            UnsupportedBackbone: The tokens of the backbone cannot be compressed.
            ValueError: A step is after the last block.
        """
        if compression is None:
            return []
        self.check_compression(compression)
        return compression.steps_before(last)

    def check_compression(self, compression: Compression) -> None:
        """Check that passages can be compressed so.

        Raises:
            UnsupportedBackbone: The tokens of the backbone cannot be compressed.
            ValueError: A step is after the last block.
        """
        deepest = compression.steps[-1][0]
        if deepest >= self.stack.num_layers:
            raise ValueError(
                f"compression {str(compression)!r}: no block reads the tokens after layer {deepest}; give layers in "
                f"1..{self.stack.num_layers - 1}"
            )
        if not self.can_compress:
            raise UnsupportedBackbone(
                f"{type(self.stack.blocks[0]).__name__}: its tokens cannot be compressed, because they mix otherwise "
                "than by softmax attention over positions that count anew; leave out the compression"
            )

    @cached_property
    def can_compress(self) -> bool:
        """Whether passages can be compressed: tokens mix by attention alone, be it one that is packed or not."""
        return self.first_position is not None or mixes_by_attention(self.backbone, self.stack)

    def _check_layers(self, layers: Sequence[int]) -> None:
        """Raise ValueError if one of the layers has no head."""
        unknown = [
            k for k in layers if isinstance(k, bool) or not isinstance(k, Integral) or k not in self.exits
        ]
        if unknown:
            raise ValueError(f"layers {unknown} have no head; exits are {describe_layers(self.exits)}")

    @property
    def can_share_prefix(self) -> bool:
        """Whether the prefix that all rows of a batch share can be computed once."""
        return self.first_position is not None and self.stack.causal and self.pooling == "last"

    def _lay_out(
        self, features: Mapping[str, Tensor], steps: Sequence[tuple[int, int]]
    ) -> PaddedLayout | PackedLayout:
        """Lay out a batch for a pass with these compressions: packed if the backbone can be packed, else padded."""
        if steps and "passage_mask" not in features:
            raise ValueError(
                "features without passage_mask, which compression needs; make them by `pad(..., mark_passages=True)`"
            )
        if self.first_position is None:
            return PaddedLayout(features, self.stack.causal, self.pooling, bool(steps))
        return PackedLayout(features, self.pooling, self.first_position, self.can_share_prefix, bool(steps))

    def head(self, layer: int) -> Tensor:
        """Return the weights of a layer's head, float32 [H]."""
        return self.heads[0 if self.shared_head else self.exits.index(layer)]

    def norm(self, layer: int) -> nn.Module:
        """Return the norm of the states that a layer's head reads."""
        return self.norms[self.exits.index(layer)] if self.norms else self.stack.norm

    def _score(self, layer: int, layout: PaddedLayout | PackedLayout, hidden: Tensor) -> Tensor:
        """Score the hidden state of a layer by its head: float32 [R], in the order of the layout.

        A row's score does not depend on its place in the batch. A matrix-vector product would round by that place, and
        equal passages would not score alike. bfloat16 scores would tie, and ties decide rankings.
        """
        states = layout.pool(hidden.float() if self.norms else hidden, self.norm(layer))  # [R, H]
        with torch.autocast(states.device.type, enabled=False):
            scores = (states.float() * self.head(layer).float()).sum(dim=-1)
            return scores if self.score_cap is None else self.score_cap * torch.tanh(scores / self.score_cap)

    # --- Scoring and ranking texts ---

    @torch.inference_mode()
    def score_rows(
        self,
        rows: Sequence[Row],
        layers: Sequence[int],
        tokens_per_batch: int | None = None,
        on_scored: Callable[[int], object] | None = None,
        compression: Compression | None = None,
        narrow: bool = False,
    ) -> np.ndarray:
        """Score tokenised pairs in batches. The reranker must be in evaluation mode.

        Args:
            rows: The pairs; their windows are rows of batches like others.
            layers: The layers that score.
            tokens_per_batch: The budget of a batch; None: `default_tokens_per_batch`.
            on_scored: Called after each batch with its number of pairs (of first windows), to show progress.
            compression: As for `encode`.
            narrow: As for `encode`.

        Returns:
            float32 [layers, rows].

        Raises:
            UnsupportedBackbone, ValueError: As `encode`.
            MemoryError: A batch does not fit into memory; the message names it.
        """
        windows = [window for row in rows for window in row.windows]
        is_first = [i == 0 for row in rows for i in range(len(row.windows))]
        scores = np.empty((len(layers), len(windows)), dtype=np.float32)
        budget = tokens_per_batch or self.default_tokens_per_batch
        for batch in make_batches(windows, budget, self.can_share_prefix):
            longest = max(len(windows[i]) for i in batch)
            hint = f"{len(batch)} rows of up to {longest} tokens; set tokens_per_batch below {budget}"
            with out_of_memory_hint(hint), self._autocast():
                features = self._make_features([windows[i] for i in batch], compression is not None)
                by_layer = self.encode(features, layers, compression, narrow)
            scores[:, batch] = torch.stack(by_layer).cpu().numpy()  # [layers, B]
            if on_scored is not None:
                on_scored(sum(is_first[i] for i in batch))
        return pool_windows(scores, rows)

    def rows_to_read(
        self,
        pairs: Sequence[tuple[str, str]],
        schedule: Schedule,
        first_stage: Sequence[float] | np.ndarray | None = None,
        prompts: LinePrompts = LinePrompts(),  # noqa: B008 - frozen
        windows: Windows | None = None,
    ) -> list[Row | None]:
        """Tokenise the (query, passage) pairs that the first stage of a schedule lets through, None for the others."""
        if schedule.from_first_stage is None:
            return list(self.prompt.rows(pairs, prompts, windows))
        read = plan_ranking(schedule, len(pairs), first_stage).read
        rows: list[Row | None] = [None] * len(pairs)
        for i, row in zip(read, self.prompt.rows([pairs[i] for i in read], prompts, windows), strict=True):
            rows[i] = row
        return rows

    @torch.inference_mode()
    def rank_rows(
        self,
        rows: Sequence[Row | None],
        schedule: Schedule,
        tokens_per_batch: int | None = None,
        first_stage: Sequence[float] | np.ndarray | None = None,
        fused: bool = False,
    ) -> Ranking:
        """Rank the tokenised candidates of one query. Of candidates with equal scores the first given comes first.

        With one exit the candidates are scored in batches, whose last block is narrowed (see `encode`). In a cascade
        they share one pass, whose blocks compute about as many tokens at a time as a batch holds.

        Args:
            rows: The candidates. Those that the first stage drops may be None (see `rows_to_read`).
            schedule: The exit or the cascade, which may compress passages.
            tokens_per_batch: As for `score_rows`.
            first_stage: The scores of the first stage, one per candidate.
            fused: Whether to drop and rank by fused scores.

        Raises:
            UnsupportedBackbone: The tokens of the backbone cannot be compressed.
            ValueError: Weights or first-stage scores are missing, or scores are given that nothing uses.
            MemoryError: The candidates do not fit into memory.
        """
        plan = plan_ranking(schedule, len(rows), first_stage, self.fusion, fused)
        read = [cast(Row, rows[i]) for i in plan.read]
        if len(schedule.layers) == 1 or not read:
            scores = self.score_rows(
                read, plan.layers, tokens_per_batch, compression=schedule.compression, narrow=True
            )  # [layers, R]
            return plan.rank(plan.fuse(scores)[None])
        budget = tokens_per_batch or self.default_tokens_per_batch
        windows = [window for row in read for window in row.windows]
        owners = [i for i, row in enumerate(read) for _ in row.windows]
        hint = (
            f"a cascade of {len(windows)} rows, about {budget} tokens at a time; set tokens_per_batch lower"
        )
        with out_of_memory_hint(hint), self._autocast():
            by_stage = self.cascade(
                self._make_features(windows, schedule.compression is not None),
                schedule.keep_of_exits,
                schedule.last,
                budget,
                weights=plan.weights,
                first_stage=plan.features.get(FIRST_STAGE),
                compression=schedule.compression,
                owners=torch.tensor(owners, device=self.heads[0].device),
                pool=read[0].pool,
            )
        return plan.rank(by_stage.cpu().numpy())

    @torch.inference_mode()
    def rank_rows_by(
        self,
        deadline: Deadline,
        rows: Sequence[Row],
        tokens_per_batch: int | None = None,
        first_stage: Sequence[float] | np.ndarray | None = None,
        fused: bool = False,
    ) -> Ranking:
        """Rank the tokenised candidates of one query by the deepest exit that is reached before a deadline.

        The candidates share one pass, as in a cascade, so that one exit ranks all of them. At each exit the pass ends
        if the blocks up to the next exit would end too late. The first exit is always reached.

        Args:
            deadline: The deadline.
            rows: The candidates.
            tokens_per_batch: About how many tokens a block computes at a time; None: `default_tokens_per_batch`.
            first_stage: The scores of the first stage, one per candidate, for `fused`.
            fused: Whether to rank by fused scores.

        Raises:
            ValueError: Weights are missing, or first-stage scores are given that do not fit or have no use.
            MemoryError: The candidates do not fit into memory.
        """

        def plan_for(layer: int) -> RankingPlan:
            return plan_ranking(Schedule.single(layer), len(rows), first_stage, self.fusion, fused)

        plan = plan_for(self.exits[-1])  # refuses wrong arguments before the pass
        if not rows:
            return plan.rank(np.empty((1, 0), dtype=np.float32))
        scores: dict[int, Tensor] = {}
        deeper = dict(pairwise(self.exits))
        budget = tokens_per_batch or self.default_tokens_per_batch
        windows = [window for row in rows for window in row.windows]
        hint = f"a pass of {len(windows)} rows, about {budget} tokens at a time; set tokens_per_batch lower"
        with out_of_memory_hint(hint), self._autocast():
            layout = self._lay_out(self._make_features(windows, mark_passages=False), [])

            def score_or_end(layer: int, hidden: Tensor) -> None:
                # the copy to the CPU waits until a GPU has computed the layer
                scores[layer] = self._score(layer, layout, hidden)[layout.rows.argsort()].cpu()
                if layer in deeper and not deadline.allows(layer, deeper[layer]):
                    raise EndOfPass

            deadline.start()
            self._run(layout, self.exits, score_or_end, [], budget)
        plan = plan_for(max(scores))
        of_windows = torch.stack([scores[layer] for layer in plan.layers]).numpy()  # [layers, windows]
        return plan.rank(plan.fuse(pool_windows(of_windows, rows))[None])

    def score(
        self,
        pairs: Iterable[Any],
        layer: int | None = None,
        *,
        layers: Sequence[int] | Literal["all"] | None = None,
        compression: str | Compression | None = None,
        windows: Windows | None = None,
        instruction: str | None = None,
        normalize: bool = False,
    ) -> np.ndarray:
        """Score (query, passage) pairs at one layer, or at several in one pass.

        Args:
            pairs: The pairs, whose passages are texts or mappings with `text` and optionally `title`; or one pair.
            layer: The layer; None: the deepest.
            layers: Several layers, or `all` exits, instead of `layer`.
            compression: Where passage tokens become fewer, such as `2/2`: after layer 2, each two become one; None:
                nowhere.
            windows: Passages that do not fit into a row are read in windows, such as `Windows(overlap=32, most=4,
                pool="max")`, and score by the largest score of a window, or by the mean; None: they are cut.
            instruction: The text for `{instruction}` in the prompt's template; None: the template's own.
            normalize: Map scores to 0..1 by the logistic function.

        Returns:
            float32 [pairs] at one layer, or [layers, pairs] at several. For one pair that is not in a list, as
            FlagEmbedding takes it, a float32, or [layers].

        Raises:
            UnsupportedBackbone: The tokens of the backbone cannot be compressed.
            ValueError: Both `layer` and `layers` are given, a layer has no head, the compression is malformed or too
                deep, a pair is not one of texts, windows overlap by more tokens than they have, or the prompt has no
                place for an instruction, or too few tokens.
            FloatingPointError: A score is not finite.
        """
        requested = self._resolve_layers(layer, layers)
        self._check_layers(requested)
        compression = Compression.parse(compression) if isinstance(compression, str) else compression
        prompts = self.prompt.with_instruction(instruction)
        rows = self.prompt.rows(check_pairs(pairs), prompts, windows)
        scores = self.score_rows(rows, requested, compression=compression)
        if not np.isfinite(scores).all():
            raise FloatingPointError(NOT_FINITE)
        scores = logistic(scores) if normalize else scores
        if is_single_pair(pairs):
            scores = scores[:, 0]
        return scores[0] if layers is None else scores

    def _resolve_layers(
        self, layer: int | None, layers: Sequence[int] | Literal["all"] | None
    ) -> Sequence[int]:
        """Return the layers that `score` is asked for."""
        if layer is not None and layers is not None:
            raise ValueError(f"layer is {layer} and layers {layers}: give one of the two")
        if layers is None:
            return [self.exits[-1] if layer is None else layer]
        if (isinstance(layers, str | int) and layers != "all") or not len(layers):
            raise ValueError(f"layers is {layers!r}; give a list such as {self.exits[-2:]}, or 'all'")
        return self.exits if isinstance(layers, str) else layers

    def rank(
        self,
        query: str,
        documents: Iterable[Any],
        layer: int | None = None,
        *,
        cascade: str | Schedule | None = None,
        first_stage: Sequence[float] | np.ndarray | None = None,
        fused: bool = False,
        compression: str | Compression | None = None,
        budget_ms: float | None = None,
        windows: Windows | None = None,
        instruction: str | None = None,
        top_k: int | None = None,
        return_documents: bool = True,
        normalize: bool = False,
        probabilities: bool = False,
        threshold: float | None = None,
    ) -> list[dict[str, Any]]:
        """Rank documents, best first. The result is that of sentence-transformers' `CrossEncoder.rank`.

        Args:
            query: The query.
            documents: The candidates: texts, or mappings with `text` and optionally `title`.
            layer: The exit that ranks; None: the deepest.
            cascade: A schedule such as `2:20 4:10 6` instead of `layer`; in `0:50 3:10 6` only the best 50 documents of
                the first stage are read.
            first_stage: The score of each document from the retriever that found it, in the order of `documents`, for
                `fused` and for a stage 0.
            fused: Rank, and let a cascade drop documents, by fused scores (see `lwr.formats.fusion`): with the weights
                that include the first stage if `first_stage` is given, otherwise with those without.
            compression: As for `score`; instead, a cascade may be written `2/2:20 6`, where each two passage tokens
                become one after layer 2.
            budget_ms: Instead of `layer`, `cascade` and `compression`: the time in milliseconds within which to
                answer. The deepest exit that is reached in time ranks all documents; see `rank_rows_by`.
            windows: As for `score`. A cascade keeps or drops all windows of a document together.
            instruction: As for `score`.
            top_k: The number of documents returned; None: all.
            return_documents: Whether to return the texts as well.
            normalize: Map scores to 0..1 by the logistic function.
            probabilities: Give as score the calibrated probability of relevance (see `lwr.formats.calibration`), by
                the last exit that scored the document.
            threshold: Leave out documents whose calibrated probability is below this, from 0 to 1; None: none.

        Returns:
            For each document `corpus_id` (its index in `documents`), `score` and, if wanted, `text`. With a cascade,
            a budget or `fused` also `layer`, the last exit that scored it; 0 if the first stage dropped it, whose
            score is then given. Scores of different layers cannot be compared.

        Raises:
            UnsupportedBackbone: The tokens of the backbone cannot be compressed.
            ValueError: Both `layer` and `cascade` are given, or one of them with `budget_ms`, which is not above 0; a
                layer has no head, the compression is malformed or too deep, `top_k` is less than 1, a document is not
                a text, `fused` without weights, a stage 0 without `first_stage`, `first_stage` is not one finite
                number per document or has no use; the prompt has no place for an instruction, or too few tokens;
                `probabilities` with `normalize`, a threshold beyond 0..1, or one of the two without a calibration of
                the exits that rank.
            FloatingPointError: A score is not finite.
        """
        deadline = None if budget_ms is None else Deadline.after(budget_ms)
        if deadline is not None and any(given is not None for given in (layer, cascade, compression)):
            raise ValueError("budget_ms chooses the exit: leave out layer, cascade and compression")
        schedule = Schedule.requested(layer, cascade, self.exits[-1], compression)
        self._check_layers(schedule.layers)
        if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, Integral) or top_k < 1):
            raise ValueError(f"top_k is {top_k!r}; give a number of documents from 1 on, or None for all")
        if normalize and probabilities:
            raise ValueError("normalize and probabilities: give one of the two")
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"threshold is {threshold}; give a probability from 0 to 1")
        lines = None
        if probabilities or threshold is not None:
            last_layers = [*dict(schedule.keep), schedule.last] if deadline is None else self.exits
            has_first_stage = first_stage is not None
            lines = lines_of_layers(self.calibration, last_layers, schedule.steps, fused, has_first_stage)
        texts = check_documents(documents)
        check_text(query, "query")
        prompts = self.prompt.with_instruction(instruction)
        pairs = [(query, text) for text in texts]
        rows = self.rows_to_read(pairs, schedule, first_stage, prompts, windows)
        if deadline is None:
            ranking = self.rank_rows(rows, schedule, first_stage=first_stage, fused=fused)
        else:
            ranking = self.rank_rows_by(deadline, cast(list[Row], rows), None, first_stage, fused)
        scores = logistic(ranking.scores) if normalize else ranking.scores
        order = ranking.order
        if lines is not None:
            calibrated = probabilities_of(ranking.scores, ranking.layers, lines)
            order = order[calibrated[order] >= (threshold or 0)]
            scores = calibrated if probabilities else scores
        ranked = []
        for i in order[:top_k].tolist():
            entry: dict[str, Any] = {"corpus_id": i, "score": float(scores[i])}
            if return_documents:
                entry["text"] = texts[i]
            if schedule.keep or fused or deadline is not None:
                entry["layer"] = int(ranking.layers[i])
            ranked.append(entry)
        return ranked

    @property
    def default_tokens_per_batch(self) -> int:
        """The number of tokens of a batch if no budget is given; it depends on the device."""
        return CPU_TOKENS_PER_BATCH if self.heads[0].device.type == "cpu" else GPU_TOKENS_PER_BATCH

    def _make_features(self, rows: Sequence[Row], mark_passages: bool) -> dict[str, Tensor]:
        """Pad rows (see `pad`) and move them to the device of the heads."""
        device = self.heads[0].device
        tokenizer = cast(PreTrainedTokenizerBase, self.tokenizer)  # there are rows, so there is a tokenizer
        features = pad(rows, tokenizer, self.num_embeddings, mark_passages)
        return {name: tensor.to(device) for name, tensor in features.items()}

    def set_precision(self, precision: ScoringPrecision) -> None:
        """Set the data type in which blocks compute when texts are scored or ranked; heads and norms keep float32.

        On a CPU, call it after the reranker was moved there: in evaluation mode, linear layers without an adapter are
        replaced by those of `lwr.model.linear.onednn` where these are faster, or of int8. They compute no gradients.

        Args:
            precision: `float32`, as loaded; `bfloat16` or `float16`, by autocast, with a warning where a CPU is slower
                with it; or `int8`, which quantises the weights for good and merges adapters before.

        Raises:
            ValueError: `int8` on a GPU, of weights that are not float32, or in training; the blocks have no linear
                layers; PyTorch has no int8 products; or another precision after `int8`.
        """
        device, blocks = self.heads[0].device, self.stack.blocks
        if self.precision == "int8" != precision:
            raise ValueError(f"precision {precision}: the weights are int8 already; load the reranker again")
        restore_linear_layers(blocks)
        if precision in HALF:
            warn_if_slow(device, HALF[precision])
        if precision == "int8" != self.precision:
            if device.type != "cpu":
                raise ValueError(
                    f"precision int8: computed by CPUs alone, not on {device}; use bfloat16 there, "
                    "or hide the GPU by CUDA_VISIBLE_DEVICES="
                )
            if self.backbone.dtype != torch.float32:
                raise ValueError(
                    f"precision int8: made from float32 weights, not {self.backbone.dtype}; load those"
                )
            if self.training:
                raise ValueError(
                    "precision int8: int8 layers compute no gradients; train in float32 or bfloat16"
                )
            self.backbone = storage.merge_adapter(self.backbone)
            _ = self.can_compress  # tried once, on float32 layers
            quantise_blocks(blocks)
        elif (
            precision != "int8"
            and device.type == "cpu"
            and not self.training
            and not storage.has_adapter(self.backbone)
        ):
            use_onednn(blocks, HALF.get(precision, torch.float32))
        self.precision = precision

    def _autocast(self) -> torch.autocast:
        dtype = HALF.get(self.precision)
        return torch.autocast(self.heads[0].device.type, dtype or torch.bfloat16, enabled=dtype is not None)

    # --- Saving and loading ---

    def save_pretrained(self, folder: str | Path) -> None:
        """Write weights or adapter, heads, tokenizer, lwr.json, and fusion.json and calibration.json if there are any.

        That is all `from_pretrained` needs, except for the base model that an adapter names. Linear layers that
        `set_precision` replaced are put back, and stay so.

        Raises:
            ValueError: The backbone has an adapter, but `base` is not known; or its layers are int8.
        """
        if self.precision == "int8":
            raise ValueError("int8 layers are not saved: save the reranker in float32, and load it in int8")
        restore_linear_layers(self.stack.blocks)
        template = self.prompt.template
        options = {
            "depth": self.stack.num_layers,
            "attention": self.attention,
            "start_layer": self.start_layer,
            "head_every": self.head_every,
            "shared_head": self.shared_head,
            "own_norms": bool(self.norms),
            "pooling": self.pooling,
            "template": None if template is None else template.model_dump(),
            "query_max_len": self.prompt.query_max_len,
            "passage_max_len": self.prompt.passage_max_len,
            "score_cap": self.score_cap,
        }
        names = ["shared"] if self.shared_head else [exit_name(k) for k in self.exits]
        heads = dict(zip(names, self.heads, strict=True))
        norms = {exit_name(k): norm.state_dict() for k, norm in zip(self.exits, self.norms, strict=False)}
        storage.write_reranker(
            Path(folder),
            self.backbone,
            heads,
            norms,
            self.prompt.tokenizer,
            self.base,
            options,
            self.fusion,
            self.calibration,
        )

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        revision: str | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        attention: Attention | None = None,
        precision: ScoringPrecision | None = None,
    ) -> Self:
        """Load a saved reranker or an upstream layerwise checkpoint, in evaluation mode.

        Args:
            model: A folder or an id on the Hugging Face hub.
            revision: The commit or branch of a hub id.
            device: None: a GPU if there is one.
            dtype: The dtype of the backbone. Heads stay float32.
            attention: The name of an attention function of transformers; None: that of the training.
            precision: How texts are scored and ranked; see `set_precision`. None: in float32, by layers that can be
                trained.

        Raises:
            ValueError: The precision is refused, a part is missing or damaged, or an adapter's base has other weights
                than it was trained on.
        """
        stored = storage.read_reranker(str(model), revision, dtype, attention)
        reranker = cls(stored.backbone, stored.tokenizer, **stored.options)
        for layer, state in stored.norms.items():
            storage.load_norm(str(model), layer, state, reranker.norm(layer))
        if stored.adapter is not None:
            reranker.backbone = storage.load_adapter(stored.backbone, stored.adapter).to(dtype)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        reranker.to(device).eval()
        if precision is not None:
            reranker.set_precision(precision)
        return reranker


def logistic(scores: np.ndarray) -> np.ndarray:
    """Map scores to 0..1 by the logistic function, in their own dtype."""
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-scores))
