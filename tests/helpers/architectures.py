"""The architectures that base models may have, or may not and why: tiny checkpoints of each, and the table of the docs.

`tests/test_base_models.py` and `tests/export/test_architectures.py` check each of them, and `make generated` writes the
table.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tiny
import torch
from transformers import AutoConfig, AutoModel

PAGE = Path(__file__).parents[2] / "docs/how-to/own-base-model.md"
START, END = "<!-- architectures: generated -->\n", "<!-- end of architectures -->\n"
LAYERS = 3
DROPPED = object()
"""Stands for a key of `tiny.SHAPE` that a config does not accept."""


@dataclass(frozen=True)
class Architecture:
    """A `model_type` of transformers.

    Attributes:
        name: The `model_type`.
        encoder: Whether a token reads the tokens after it.
        settings: Keys of its config beside those of `tiny.SHAPE`.
        refused: The reason why it cannot be used; None: it can.
        not_exported: The reason why exits that pool as is usual cannot be exported as `huggingface`; None: they can.
    """

    name: str
    encoder: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    refused: str | None = None
    not_exported: str | None = None

    def save(self, folder: Path) -> Path:
        """Save a checkpoint with random weights, and its tokenizer."""
        torch.manual_seed(0)
        shape = tiny.SHAPE | {"num_hidden_layers": LAYERS} | self.settings
        shape = {key: value for key, value in shape.items() if value is not DROPPED}
        AutoModel.from_config(AutoConfig.for_model(self.name, **shape)).save_pretrained(folder)
        tiny.tokenizer(encoder=self.encoder).save_pretrained(folder)
        return folder


def decoder(
    name: str, refused: str | None = None, not_exported: str | None = None, **settings: Any
) -> Architecture:
    """Return a decoder."""
    return Architecture(name, False, settings, refused, not_exported)


def encoder(
    name: str, refused: str | None = None, not_exported: str | None = None, **settings: Any
) -> Architecture:
    """Return an encoder."""
    return Architecture(name, True, settings, refused, not_exported)


HEAD = {"head_dim": 8}
OFFSET = {"max_position_embeddings": 514, "pad_token_id": 1, "bos_token_id": 0}  # as RoBERTa has them
DISENTANGLED = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
DEBERTA_V2 = {
    "position_buckets": 32,
    "position_biased_input": False,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "type_vocab_size": 0,
}
BART = {"encoder_layers": LAYERS, "decoder_layers": LAYERS, "d_model": 32}
BART |= {f"{side}_ffn_dim": 64 for side in ("encoder", "decoder")}
BART |= {f"{side}_attention_heads": 4 for side in ("encoder", "decoder")}
LINEAR_AND_FULL = ["linear_attention", "full_attention", "linear_attention"]
MOBILE = {"embedding_size": 32, "true_hidden_size": 32, "intra_bottleneck_size": 32}
MOBILE |= {"initializer_range": 0.1}  # with more, states without norm grow until rounding changes scores
PADDING = "depends on the padding"
DROPS = "no rows can be dropped"
ONE_LIST = "one list of its 3 blocks"
ONE_NORM = "not one norm"
SEQ2SEQ = "an encoder with a decoder"
NO_CLASS = "no sequence classifier of this architecture"
FIRST_ONLY = "reads the first token"
ARCHITECTURES = [
    decoder("biogpt"),
    decoder("bloom", DROPS),
    decoder("codegen", not_exported=NO_CLASS, rotary_dim=8),
    decoder("cohere", not_exported=NO_CLASS),
    decoder("exaone4"),
    decoder("falcon"),
    decoder("gemma", **HEAD),
    decoder("gemma2", **HEAD),
    decoder("gemma3_text", **HEAD),
    decoder("glm", **HEAD),
    decoder("gpt2"),
    decoder("gpt_bigcode"),
    decoder("gpt_neo", num_layers=LAYERS, num_heads=4, attention_types=[[["global"], LAYERS]]),
    decoder("gpt_neox"),
    decoder("gpt_oss", num_local_experts=4, **HEAD),
    decoder("gptj", rotary_dim=8),
    decoder("granite", not_exported=NO_CLASS),
    decoder("lfm2", not_exported=NO_CLASS, block_ff_dim=64, layer_types=["conv", "full_attention", "conv"]),
    decoder("llama"),
    decoder("mamba", not_exported=NO_CLASS, state_size=4),
    decoder("mamba2", not_exported=NO_CLASS, num_heads=8, head_dim=8, state_size=8, n_groups=1),
    decoder("mistral"),
    decoder("mixtral", num_local_experts=4),
    decoder("mpt"),
    decoder("nemotron"),
    decoder("olmo"),
    decoder("olmo2"),
    decoder("openai-gpt"),
    decoder("opt", word_embed_proj_dim=32, ffn_dim=64),
    decoder("persimmon"),
    decoder("phi"),
    decoder("phi3"),
    decoder("qwen2"),
    decoder("qwen3", **HEAD),
    decoder("qwen3_5_text", **HEAD, **tiny.LINEAR_ATTENTION, layer_types=LINEAR_AND_FULL),
    decoder("rwkv", not_exported=NO_CLASS, attention_hidden_size=32),
    decoder("smollm3"),
    decoder("stablelm"),
    decoder("starcoder2"),
    decoder("xglm", not_exported=NO_CLASS, num_layers=LAYERS, attention_heads=4, ffn_dim=64),
    encoder("albert", ONE_LIST, embedding_size=16),
    encoder("bart", SEQ2SEQ, **BART),
    encoder("bert"),
    encoder("big_bird", attention_type="original_full"),
    encoder("camembert"),
    encoder("convbert", PADDING, embedding_size=32),
    encoder("data2vec-text", **OFFSET),
    encoder("deberta", **DISENTANGLED, intermediate_size=128),
    encoder("deberta-v2", **DISENTANGLED, **DEBERTA_V2),
    encoder("distilbert"),
    encoder("electra", embedding_size=32),
    encoder("ernie"),
    encoder("esm", not_exported=FIRST_ONLY),
    encoder("eurobert", **HEAD),
    encoder("fnet", PADDING),
    encoder("layoutlm"),
    encoder("longformer", ONE_NORM, attention_window=[16] * LAYERS),
    encoder("megatron-bert", not_exported=FIRST_ONLY),
    encoder("mobilebert", not_exported=FIRST_ONLY, **MOBILE),
    encoder("modernbert", cls_token_id=1, sep_token_id=2),
    encoder("mpnet", not_exported=FIRST_ONLY, **OFFSET),
    encoder("nomic_bert", not_exported=FIRST_ONLY),
    encoder("nystromformer", PADDING),
    encoder("rembert", input_embedding_size=32),
    encoder("roberta", **OFFSET),
    encoder("roformer", embedding_size=32),
    encoder("squeezebert", "does not call its blocks", embedding_size=32),
    encoder("t5", SEQ2SEQ, d_kv=8, d_ff=64),
    encoder("xlm", ONE_LIST, emb_dim=32, n_layers=LAYERS),
    encoder("xlm-roberta", **OFFSET),
    encoder("xlnet", ONE_NORM, d_inner=64, d_head=8, max_position_embeddings=DROPPED),
]  # fmt: skip


def render_table() -> str:
    """Return the table of architectures in Markdown."""
    lines = ["| architecture | kind | base model | `lwr export` |", "|:--|:--|:--|:--|"]
    for each in ARCHITECTURES:
        kind = "encoder" if each.encoder else "decoder"
        outcome = "yes" if each.refused is None else f"refused: {REASONS[each.refused]}"
        lines.append(f"| {each.name} | {kind} | {outcome} | {_describe_export(each)} |")
    return "\n".join(lines) + "\n"


def _describe_export(architecture: Architecture) -> str:
    """Return the table's entry on exports."""
    if architecture.refused is not None:
        return ""
    if architecture.not_exported is not None:
        return EXPORT_REASONS[architecture.not_exported]
    return "yes, and for FlagEmbedding" if architecture.name == "llama" else "yes"


EXPORT_REASONS = {
    NO_CLASS: "as sentence-transformers: transformers has no sequence classifier of it",
    FIRST_ONLY: "as sentence-transformers; with `pooling: first` also as huggingface",
}
"""Key words of a message -> the entry in the docs."""
REASONS = {
    DROPS: "a cascade cannot drop rows between its blocks",
    ONE_LIST: "it does not keep all its blocks in a single list",
    PADDING: "the score of a pair depends on the padding of its batch",
    SEQ2SEQ: "an encoder with a decoder",
    ONE_NORM: "what it computes after its last block is not one norm",
    "does not call its blocks": "it does not call its blocks as modules",
}
"""Key words of a message -> the reason in the docs."""


def render_page() -> str:
    """Return the page on base models with a fresh table."""
    text = PAGE.read_text(encoding="utf-8")
    return re.sub(f"{START}.*{END}", lambda _: f"{START}\n{render_table()}\n{END}", text, flags=re.DOTALL)
