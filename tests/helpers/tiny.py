"""Tiny randomly initialised models of every supported architecture, as Hugging Face checkpoints on disk.

`python tests/helpers/tiny.py checkpoints` writes the two that config/test.yaml names.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, processors
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from lwr.model.layer_hooks import find_layer_stack, run_to
from lwr.model.reranker import LayerwiseReranker

LAYERS, HIDDEN, VOCABULARY = 4, 32, 600
SHAPE = {
    "hidden_size": HIDDEN,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,  # the usual 0.02 makes every score nearly 0
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LINEAR_ATTENTION = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
DECODERS = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "qwen3_5_text": {"head_dim": 8, **LINEAR_ATTENTION},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8},
    "gemma3_text": {"head_dim": 8},
    "granite": {},
    "olmo2": {},
    "lfm2": {"block_ff_dim": 64, "layer_types": ["conv", "full_attention"] * (LAYERS // 2)},
    "phi3": {},
    "smollm3": {},
}
ENCODERS = {
    "bert": {},
    "xlm-roberta": {},
    "modernbert": {"cls_token_id": 1, "sep_token_id": 2},
}
ARCHITECTURES = DECODERS | ENCODERS


def backbone(architecture: str, seed: int = 0) -> PreTrainedModel:
    """Make a backbone with random weights, in evaluation mode, without a vocabulary head."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(architecture, **SHAPE, **ARCHITECTURES[architecture])
    return AutoModel.from_config(config).eval()


def causal_lm(architecture: str, seed: int = 0) -> PreTrainedModel:
    """Make a causal language model with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(architecture, **SHAPE, **DECODERS[architecture])
    return AutoModelForCausalLM.from_config(config).eval()


@cache
def tokenizer(encoder: bool) -> PreTrainedTokenizerFast:
    """Read a byte-level BPE of 600 tokens; encoders get a format of pairs.

    It was trained on the source of the json package of Python 3.11, and is kept so that other Pythons test the same.
    """
    bpe = Tokenizer.from_file(str(Path(__file__).with_name("tokenizer.json")))
    if encoder:
        bpe.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"]
        if encoder
        else ["input_ids", "attention_mask"],
    )


def tokenizer_padding_beyond(num_embeddings: int, encoder: bool = False) -> PreTrainedTokenizerFast:
    """Return the tokenizer with a pad token whose id is the first without an embedding."""
    tokens = copy.deepcopy(tokenizer(encoder))
    tokens.add_special_tokens({"pad_token": "<filler>"})
    assert tokens.pad_token_id == num_embeddings
    return tokens


def normed_states(backbone: PreTrainedModel, layers: list[int], **features) -> list[torch.Tensor]:
    """Return the hidden states [rows, tokens, hidden] of some layers after the final norm."""
    stack, states = find_layer_stack(backbone), {}

    def record(layer: int, hidden: torch.Tensor) -> None:
        states[layer] = stack.norm(hidden)

    run_to(backbone, stack, layers, record, **features)
    return [states[k] for k in layers]


def record_blocks(
    blocks: nn.ModuleList, patch: pytest.MonkeyPatch, record: Callable[[int, dict], None]
) -> None:
    """Call `record` with a block's number, from 1, and its keyword arguments whenever the block computes."""

    def recorded(k, forward):
        def record_and_run(*args, **kwargs):
            record(k, kwargs)
            return forward(*args, **kwargs)

        return record_and_run

    for k, block in enumerate(blocks, start=1):
        patch.setattr(block, "forward", recorded(k, block.forward))


def save(architecture: str, folder: Path) -> Path:
    """Save a checkpoint with its tokenizer; that of a decoder has a vocabulary head."""
    decoder = architecture in DECODERS
    model = causal_lm(architecture) if decoder else backbone(architecture)
    model.save_pretrained(folder)
    tokenizer(encoder=not decoder).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    for name in ("llama", "bert"):
        print(save(name, Path(sys.argv[1]) / f"tiny-{name}"))


def build_reranker(architecture: str) -> LayerwiseReranker:
    """Return a reranker with heads from layer 2 of 4, which reads 16 tokens of a query and 160 of a passage."""
    own_tokenizer = tokenizer(encoder=architecture in ENCODERS)
    lengths = {"query_max_len": 16, "passage_max_len": 160}
    return LayerwiseReranker(backbone(architecture), own_tokenizer, start_layer=2, **lengths)
