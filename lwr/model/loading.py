"""Load a base model from any Hugging Face checkpoint, cut to its first blocks if asked.

MiniCPM becomes a Llama, and `cost_wise_gemma` a Gemma 2.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os.path import commonpath
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lwr.common.errors import BadInput, first_line
from lwr.config.model import BaseModelConfig
from lwr.formats.checkpoint import (
    WEIGHTS_INDEX,
    check_no_adapter,
    check_weights,
    fetch_checkpoint,
    read_config,
)
from lwr.model.layer_hooks import find_blocks
from lwr.model.prompt import Prompt, yes_token
from lwr.model.sources.cross_encoder import (
    NO_CLASSIFIER_FIX,
    CrossEncoderHead,
    check_classifier,
    check_classifier_head,
    read_cross_encoder_head,
)
from lwr.model.sources.lightweight import is_lightweight, read_gemma2_config, read_heads
from lwr.model.sources.minicpm import is_minicpm, load_minicpm
from lwr.model.sources.stored import is_stored_reranker, read_description, read_stored_heads

StockHead = Literal["vocabulary", "classifier"]
AUTO_CLASSES = {
    None: AutoModel,
    "vocabulary": AutoModelForCausalLM,
    "classifier": AutoModelForSequenceClassification,
}
"""Head of a checkpoint that is read beside the backbone -> the class that has it."""


@dataclass(frozen=True)
class LoadedBaseModel:
    """A backbone and what its heads may be initialised from.

    Attributes:
        backbone: In evaluation mode.
        tokenizer: Its tokenizer.
        yes_row: float32 [H], the row of `Yes` in the vocabulary head; None if that was not read or does not exist.
        heads: Layer -> float32 [H], the heads of a layerwise checkpoint; else empty.
        cross_encoder: The head of a sequence classifier; None if that was not read.
        trained_as: Pooling and template of a reranker that lwr wrote, as its lwr.json has them; else empty.
    """

    backbone: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    yes_row: Tensor | None
    heads: dict[int, Tensor]
    cross_encoder: CrossEncoderHead | None = None
    trained_as: dict[str, Any] = field(default_factory=dict)


def load_base_model(base: BaseModelConfig, head: StockHead | None = None) -> LoadedBaseModel:
    """Load a base model.

    Args:
        base: The checkpoint.
        head: The head that is read, too: `vocabulary` for `yes_row`, `classifier` for `cross_encoder`.

    Raises:
        BadInput: The checkpoint is missing or damaged, needs code of its own, or lacks tensors or safetensors; or it is
            not a sequence classifier with one label, and `head` asks for that.
    """
    folder = fetch_checkpoint(base.model, base.revision)
    check_no_adapter(folder)
    dtype = getattr(torch, base.dtype)
    if is_minicpm(folder) and head == "classifier":
        raise BadInput(f"{base.model}: a MiniCPM has no head of a sequence classifier; {NO_CLASSIFIER_FIX}")
    if is_minicpm(folder):
        # a plain config, because transformers warns of a model of type `` where it does not know that of config.json
        tokenizer = load_tokenizer(folder, PretrainedConfig())
        minicpm = load_minicpm(folder, tokenizer, base.num_layers, dtype, base.attention)
        vocabulary = minicpm.vocabulary_head
        yes_row = None if vocabulary is None else vocabulary[yes_token(tokenizer)].clone()
        return LoadedBaseModel(minicpm.backbone, tokenizer, yes_row, minicpm.heads)

    lightweight = is_lightweight(folder)
    tokenizer = load_tokenizer(folder, PretrainedConfig() if lightweight else None)
    config = read_model_config(folder, base.num_layers)
    check_weights(folder)
    if head == "classifier":
        check_classifier(base.model, config)
    model, missing = load_weights(AUTO_CLASSES[head], folder, config, dtype, base.attention)
    backbone, prefix = cast(PreTrainedModel, model.base_model.eval()), f"{model.base_model_prefix}."
    missing_head = {name for name in missing if head is not None and not name.startswith(prefix)}
    if head == "classifier":
        missing_head |= {name for name in missing if name.startswith(f"{prefix}pooler.")}
    check_missing(folder, missing - missing_head)
    yes_row, cross_encoder = None, None
    if head == "vocabulary" and not missing_head:
        yes_row = yes_row_of(model, tokenizer)
    if head == "classifier":
        check_classifier_head(base.model, missing_head)
        cross_encoder = read_cross_encoder_head(model.eval(), tokenizer)
    heads, trained_as = read_heads(folder) if lightweight else {}, {}
    if is_stored_reranker(folder):
        description = read_description(folder)
        if description["own_norms"]:
            raise BadInput(
                f"{base.model}: a reranker whose exits have norms of their own, which are no part of a base model; "
                "start from one that was trained with exit_norm: shared"
            )
        heads = read_stored_heads(folder, description)
        trained_as = {key: description[key] for key in ("pooling", "template")}
    heads = {layer: weights for layer, weights in heads.items() if layer <= config.num_hidden_layers}
    return LoadedBaseModel(backbone, tokenizer, yes_row, heads, cross_encoder, trained_as)


def load_tokenizer(folder: Path, config: PretrainedConfig | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint.

    Args:
        folder: The checkpoint.
        config: A config in place of its config.json.

    Raises:
        BadInput: There is none, or it is damaged, has no vocabulary or needs code of its own.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare ones
        raise BadInput(
            f"{folder}: its tokenizer cannot be read ({first_line(error)}); fetch it again"
        ) from error
    # Some classes of tokenizers load without their files.
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        raise BadInput(
            f"{folder}: its tokenizer has no vocabulary; put its files, such as tokenizer.json, there"
        )
    return tokenizer


def load_weights(
    auto_class: Any,
    folder: Path,
    config: PretrainedConfig,
    dtype: torch.dtype,
    attention: str,
    device: str | None = None,
) -> tuple[PreTrainedModel, set[str]]:
    """Load a model whose files `check_weights` has accepted.

    Args:
        auto_class: One of transformers' Auto classes.
        folder: The checkpoint.
        config: Its config, which may be cut to the first blocks.
        dtype: The dtype of the model.
        attention: The attention that is asked for; see `resolve_attention`.
        device: `meta` compares the names and shapes of all tensors, but reads none; None: the CPU.

    Returns:
        The model, and the names of the tensors that the checkpoint lacks.

    Raises:
        BadInput: Weights have another shape than config.json says, or are not safetensors; or the attention is not
            available.
    """
    names = ("model.safetensors", WEIGHTS_INDEX)
    if not any((folder / name).is_file() for name in names):
        raise BadInput(f"{folder}: no {' or '.join(names)} in it; pickled weights are not read, convert them")
    model, info = auto_class.from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        attn_implementation=resolve_attention(auto_class, config, attention),
        use_safetensors=True,
        device_map=device,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,  # reported below
        output_loading_info=True,
    )
    if mismatched := sorted(info["mismatched_keys"]):
        name, actual, expected = mismatched[0]
        shapes = f"{name} is {list(actual)}, by config.json {list(expected)}"
        raise BadInput(
            f"{folder}: weights of another shape than its config.json says: {shapes}; fetch it again"
        )
    return model, set(info["missing_keys"])


def build_on_meta(auto_class: Any, config: PretrainedConfig, attention: str) -> PreTrainedModel:
    """Build a model without weights.

    Raises:
        ValueError, ImportError: Its class does not have that attention, or a package for it is missing.
    """
    with torch.device("meta"):
        return auto_class.from_config(
            copy.deepcopy(config), attn_implementation=attention, trust_remote_code=False
        )


def resolve_attention(auto_class: Any, config: PretrainedConfig, attention: str) -> str:
    """Return the attention that a model is loaded with: `eager` where `sdpa` is asked for and its class has none.

    Raises:
        BadInput: Another attention is asked for, and its class does not have it, or a package is missing.
    """
    try:
        build_on_meta(auto_class, config, attention)
    except (ValueError, ImportError) as error:
        if attention == "sdpa":
            return "eager"
        raise BadInput(
            f"{config.model_type}: no attention {attention!r} ({first_line(error)}); use `sdpa`"
        ) from error
    return attention


def check_missing(folder: Path, missing: set[str]) -> None:
    """Raise BadInput if a checkpoint lacks a tensor that is needed; a pooler is not, as no head reads it."""
    needed = {name for name in missing if not name.startswith("pooler.")}
    if needed:
        raise BadInput(
            f"{folder}: its checkpoint lacks {len(needed)} tensors, {min(needed)} for one; fetch it again"
        )


def read_model_config(folder: Path, num_layers: int | None = None) -> PretrainedConfig:
    """Read config.json with transformers, cut to the first `num_layers` blocks if that is not None.

    Raises:
        BadInput: transformers does not know the architecture, or a value is wrong.
    """
    try:
        if is_lightweight(folder):
            config = read_gemma2_config(folder)
        else:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        reason = first_line(error)
        if "auto_map" in read_config(folder):
            reason = (
                "needs code of its own (auto_map), which is never run; take a model that transformers knows"
            )
        raise BadInput(f"{folder / 'config.json'}: {reason}") from error
    if num_layers is not None:
        cut_config(config.get_text_config(), num_layers)
    return config


def cut_config(config: PretrainedConfig, num_layers: int) -> None:
    """Cut a text config, in place, to its first `num_layers` blocks."""
    config.num_hidden_layers = num_layers
    if vars(config).get("layer_types"):  # attention or convolution, one entry per block
        config.layer_types = config.layer_types[:num_layers]
    if config.model_type == "gpt_neo":  # the same, and the list that it is made from
        config.attention_layers = config.attention_layers[:num_layers]
        config.attention_types = [[config.attention_layers, 1]]


def count_embeddings(backbone: PreTrainedModel) -> int:
    """Return the number of token ids that a backbone has an embedding of."""
    return len(cast(nn.Embedding, backbone.get_input_embeddings()).weight)


def count_positions(backbone: PreTrainedModel) -> int | None:
    """Return how many tokens a row may have by a backbone's table of positions; None if it has no such table.

    RoBERTa's table begins after the id of its padding token, and OPT's after an offset. Tables of other towers, such as
    one for images, do not count.
    """
    names = {module: name for name, module in backbone.named_modules()}
    parts = (cast(nn.Module, backbone.get_input_embeddings()), find_blocks(backbone))
    tower = commonpath([names[part].replace(".", "/") for part in parts]).replace("/", ".")
    limits = [
        module.num_embeddings
        - (getattr(module, "offset", 0) if module.padding_idx is None else module.padding_idx + 1)
        for module, name in names.items()
        if isinstance(module, nn.Embedding) and name.startswith(tower) and _is_position_table(name)
    ]
    limits += [len(table) for name, table in backbone.named_buffers() if name.endswith(".embed_positions")]
    return min(limits, default=None)


def check_row_limit(prompt: Prompt, positions: int | None) -> None:
    """Raise BadInput if rows may have more tokens than there are positions; see `count_positions`."""
    if positions is not None and prompt.lengths.row > positions:
        fitting = prompt.passage_max_len - prompt.lengths.row + positions
        fix = f"lower passage_max_len to {fitting}" if fitting > 0 else "lower both"
        raise BadInput(
            f"query_max_len {prompt.query_max_len} and passage_max_len {prompt.passage_max_len} allow rows of "
            f"{prompt.lengths.row} tokens, but the base model has {positions} positions; {fix}"
        )


def _is_position_table(name: str) -> bool:
    """Return whether an embedding of that name has a row per position."""
    last = name.rpartition(".")[2]
    return last == "wpe" or ("position" in last and "relative" not in last)


def yes_row_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Return the row of `Yes` in a causal model's vocabulary head, float32 [H]."""
    vocabulary = cast(nn.Linear, model.get_output_embeddings())
    return vocabulary.weight[yes_token(tokenizer)].detach().float().clone()


def set_dropout(backbone: nn.Module, share: float) -> None:
    """Set the share, 0..1, of hidden states and attention weights that training drops."""
    for module in backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = share
        if "attention_dropout" in vars(module):  # decoders pass this number to the attention function
            vars(module)["attention_dropout"] = share


def copy_norm(norm: nn.Module) -> nn.Module:
    """Copy a backbone's final norm in float32, to be trained as the own norm of an exit.

    Raises:
        ValueError: It has no weights, or is the Identity of a backbone whose blocks normalise their own output.
    """
    if not list(norm.parameters()):
        raise ValueError(
            "exits cannot have norms of their own: this backbone has no final norm with weights; use exit_norm: shared"
        )
    return copy.deepcopy(norm).float().requires_grad_(True)


def make_heads(
    layers: Sequence[int], backbone: PreTrainedModel, initial: Tensor | Mapping[int, Tensor] | None
) -> list[Tensor]:
    """Return the initial weights of heads, float32 [H] each, on the backbone's device.

    Args:
        layers: The layers of the heads.
        backbone: The backbone.
        initial: [H] for all, or layer -> [H]; None: random.

    Raises:
        ValueError: A layer has no head in `initial`.
    """
    hidden_size = backbone.config.get_text_config().hidden_size
    if initial is None:
        return [torch.normal(0.0, 0.02, (hidden_size,), device=backbone.device) for _ in layers]
    weights = dict.fromkeys(layers, initial) if isinstance(initial, Tensor) else initial
    missing = [k for k in layers if k not in weights]
    if missing:
        raise ValueError(f"no head for layers {missing}: the checkpoint has heads at {sorted(weights)}")
    return [weights[k].detach().to(backbone.device, torch.float32).clone() for k in layers]
