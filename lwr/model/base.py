"""The step `base`: fetch a base model once per grid, and try it out before anything trains on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from lwr.common.errors import BadInput, first_line
from lwr.common.json_lines import write_json
from lwr.common.progress import log
from lwr.config.model import BaseModelConfig
from lwr.formats.checkpoint import describe_checkpoint, fetch_checkpoint
from lwr.model.batching import pad
from lwr.model.layer_hooks import UnsupportedBackbone, find_blocks
from lwr.model.loading import (
    CrossEncoderHead,
    LoadedBaseModel,
    StockHead,
    check_missing,
    count_embeddings,
    count_positions,
    load_base_model,
    load_weights,
    read_model_config,
    resolve_attention,
)
from lwr.model.packing import are_close
from lwr.model.prompt import Row
from lwr.model.reranker import LayerwiseReranker
from lwr.model.sources.minicpm import check_tensors, is_minicpm

TRIED_LAYERS = 2
"""The number of blocks that are loaded and run; the others have the same code."""
PAIRS = [
    (
        "how is a string decoded?",
        "Decode a JSON document from a string, and return the object that it describes.",
    ),
    ("how is a string decoded?", "Raise ValueError."),
    ("how is a string decoded?", "Encode a list of numbers as text."),
]  # of unequal length, so that the shorter ones are padded


@dataclass(frozen=True)
class TriedBaseModel:
    """What trying out a base model has shown.

    Attributes:
        description: As `describe_checkpoint` returns it.
        attention: The attention that it is loaded with.
        positions: The largest number of tokens of a row; None: any.
        has_yes_row: Whether heads can be initialised by `head_init: yes_token`.
        cross_encoder: The head of its first blocks as a sequence classifier; None if that was not asked for.
        reranker: Its first blocks with random heads.
    """

    description: dict
    attention: str
    positions: int | None
    has_yes_row: bool
    cross_encoder: CrossEncoderHead | None
    reranker: LayerwiseReranker


def base(config: BaseModelConfig, out: Path) -> TriedBaseModel:
    """Fetch a base model, try it out, and describe it in the JSON file `out`.

    Raises:
        BadInput: See `try_base_model`.
    """
    tried = try_base_model(config)
    if tried.attention != config.attention:
        log(f"base: {config.model} has no attention {config.attention!r}; {tried.attention!r} is used")
    write_json(out, tried.description | {"attention": tried.attention, "positions": tried.positions})
    return tried


def try_base_model(config: BaseModelConfig, head: StockHead | None = None) -> TriedBaseModel:
    """Do with a base model what training, scoring and cascades do, on its first blocks and three pairs.

    Args:
        config: The base model.
        head: The head that is read, too; see `load_base_model`.

    Raises:
        BadInput: The checkpoint is missing or damaged, has fewer than `num_layers` layers, its tokenizer does not fit,
            or its architecture cannot be used; the message gives the reason.
    """
    description = describe_checkpoint(config.model, config.revision, config.num_layers)
    try:
        attention = _check_architecture(config)
        loaded = _load_first_blocks(config, attention, description["layers"], head)
        positions = count_positions(loaded.backbone)
        _check_tokenizer(config.model, loaded.tokenizer, loaded.backbone)
        reranker = _make_reranker(config, loaded.backbone, loaded.tokenizer, positions)
        rows = reranker.prompt.rows(PAIRS)
        _check_rows(config.model, rows, reranker)
        _try_scores(rows, reranker.eval())
    except UnsupportedBackbone as error:
        raise BadInput(f"{config.model}: this architecture cannot be used: {error}") from error
    has_yes_row = loaded.yes_row is not None
    return TriedBaseModel(description, attention, positions, has_yes_row, loaded.cross_encoder, reranker)


def _check_architecture(config: BaseModelConfig) -> str:
    """Compare all tensors with the model, find all its blocks, and return the attention that it is loaded with.

    No tensor is read.
    """
    folder = fetch_checkpoint(config.model, config.revision)
    if is_minicpm(folder):
        check_tensors(folder, config.num_layers)
        return config.attention
    model_config = read_model_config(folder, config.num_layers)
    attention = resolve_attention(AutoModel, model_config, config.attention)
    try:
        dtype = getattr(torch, config.dtype)
        backbone, missing = load_weights(AutoModel, folder, model_config, dtype, attention, "meta")
    except BadInput:
        raise
    except Exception as error:  # whatever a model's class raises
        is_quantised = "quantization_config" in vars(model_config)
        fix = (
            "; its weights are quantised: take the checkpoint that they were made from"
            if is_quantised
            else ""
        )
        raise UnsupportedBackbone(
            f"{model_config.model_type}: it cannot be built ({first_line(error)}){fix}"
        ) from error
    check_missing(folder, missing)
    find_blocks(backbone)
    return attention


def _load_first_blocks(
    config: BaseModelConfig, attention: str, layers: int, head: StockHead | None
) -> LoadedBaseModel:
    """Load the first blocks of a base model, or all where its class cannot be cut."""
    runs_here = attention if attention in ("sdpa", "eager") else "eager"  # other kernels need a GPU
    cut = config.model_copy(update={"num_layers": min(TRIED_LAYERS, layers), "attention": runs_here})
    try:
        loaded = load_base_model(cut, head)
        find_blocks(loaded.backbone)  # not found if a vision tower has as many
        return loaded
    except Exception:  # whatever a model's class raises; loading all blocks then gives the reason
        complete = cut.model_copy(update={"num_layers": config.num_layers})
        return load_base_model(complete, head)


def _check_tokenizer(model: str, tokenizer: PreTrainedTokenizerBase, backbone: PreTrainedModel) -> None:
    """Raise BadInput if a token of the vocabulary has no embedding; added tokens, such as a pad token, need none."""
    num_embeddings = count_embeddings(backbone)
    added = set(cast(Any, tokenizer).get_added_vocab())
    beyond = {t: i for t, i in tokenizer.get_vocab().items() if i >= num_embeddings and t not in added}
    if beyond:
        token = min(beyond, key=lambda t: beyond[t])
        raise BadInput(
            f"{model}: its tokenizer has a token {token!r} with id {beyond[token]}, but the "
            f"model has {num_embeddings} embeddings; put the model's own tokenizer beside it"
        )


def _make_reranker(
    config: BaseModelConfig,
    backbone: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    positions: int | None,
) -> LayerwiseReranker:
    """Put random heads on a backbone, with lengths that fit its positions."""
    query_max_len = 32 if positions is None else min(32, positions // 4)
    passage_max_len = 224 if positions is None else min(224, positions - query_max_len)
    random = torch.Generator().manual_seed(0)
    head = torch.randn(backbone.config.get_text_config().hidden_size, generator=random)
    try:
        return LayerwiseReranker(
            backbone,
            tokenizer,
            1,
            pooling=config.pooling,
            initial_heads=head,
            template=config.template,
            query_max_len=query_max_len,
            passage_max_len=passage_max_len,
        )
    except UnsupportedBackbone:
        raise
    except ValueError as error:
        raise BadInput(f"{config.model}: {first_line(error)}") from error
    except Exception as error:  # whatever a model's class raises
        raise _cannot_run(backbone, error) from error


def _check_rows(model: str, rows: list[Row], reranker: LayerwiseReranker) -> None:
    """Raise BadInput if a row has a token or a token type without an embedding."""
    largest = max(max(row.input_ids) for row in rows)
    if largest >= reranker.num_embeddings:
        token = reranker.prompt.tokenizer.convert_ids_to_tokens(largest)
        raise BadInput(
            f"{model}: its tokenizer writes {token!r}, id {largest}, into each pair, but the model has "
            f"{reranker.num_embeddings} embeddings; put the model's own tokenizer beside it"
        )
    largest_type = max(max(row.token_type_ids or [0]) for row in rows)
    for name, module in reranker.backbone.named_modules():
        is_of_types = isinstance(module, nn.Embedding) and name.endswith("token_type_embeddings")
        if is_of_types and largest_type >= cast(int, module.num_embeddings):
            raise BadInput(
                f"{model}: its tokenizer writes token type {largest_type}, but the model has {module.num_embeddings} "
                "type embeddings; remove token_type_ids from model_input_names in tokenizer_config.json"
            )


@torch.no_grad()
def _try_scores(rows: list[Row], reranker: LayerwiseReranker) -> None:
    """Check that scores do not depend on padding, and that a cascade gives the same ones.

    Raises:
        UnsupportedBackbone: They do, or the backbone cannot be run.
    """
    name = type(reranker.backbone).__name__
    try:
        together = _scores(rows, reranker)  # [exits, rows]
        alone = torch.cat([_scores([row], reranker) for row in rows], dim=1)  # [exits, rows]
    except Exception as error:  # whatever a model's class raises
        raise _cannot_run(reranker.backbone, error) from error
    if not are_close(alone, together, reranker.backbone.dtype):
        raise UnsupportedBackbone(
            f"{name}: the score of a pair depends on the padding that its batch needs, so it has no score of its own"
        )
    if len(reranker.exits) == 1:
        return
    features = pad(rows, reranker.prompt.tokenizer, reranker.num_embeddings)
    try:
        scores = reranker.cascade(features, {1: 2}, reranker.exits[-1], tokens_at_once=1)  # [stages, rows]
    except Exception as error:  # whatever a model's class raises
        raise UnsupportedBackbone(
            f"{name}: no rows can be dropped between its blocks, as cascades do ({first_line(error)})"
        ) from error
    kept = ~scores[-1].isnan()
    if not are_close(scores[-1, kept], together[-1, kept], reranker.backbone.dtype):
        raise UnsupportedBackbone(
            f"{name}: other rows change the score of a row, so cascades cannot drop any"
        )


def _scores(rows: list[Row], reranker: LayerwiseReranker) -> Tensor:
    """Score rows at all exits: float32 [exits, rows]."""
    return reranker(pad(rows, reranker.prompt.tokenizer, reranker.num_embeddings))


def _cannot_run(backbone: PreTrainedModel, error: Exception) -> UnsupportedBackbone:
    """Return the error that a backbone cannot be run on texts."""
    reason = f"{type(error).__name__}: {first_line(error)}"
    return UnsupportedBackbone(f"{type(backbone).__name__}: it cannot be run on token ids alone ({reason})")
