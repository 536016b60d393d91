"""Format `upstream`: a checkpoint in the layout of bge-reranker-v2-minicpm-layerwise, which FlagEmbedding loads.

A MiniCPM whose three scales are 1 is a Llama. FlagEmbedding brings the code of the model, so none is written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from lwr.common.exits import describe_layers
from lwr.common.json_lines import write_json
from lwr.config.model import PromptTemplate
from lwr.export.pair_tokenizer import write_plain_tokenizer
from lwr.export.readme import upstream_readme
from lwr.export.truncate import truncate_tensors
from lwr.model.reranker import LayerwiseReranker
from lwr.model.sources.minicpm import SAME_IN_LLAMA


def write_upstream(reranker: LayerwiseReranker, layer: int, folder: Path) -> None:
    """Write the exits up to `layer` as FlagEmbedding's layerwise checkpoint.

    Raises:
        ValueError: Upstream's class or prompt would give other scores.
    """
    check_upstream(reranker)
    tensors = {f"model.{name}": tensor for name, tensor in truncate_tensors(reranker, layer).items()}
    exits = [k for k in reranker.exits if k <= layer]
    if reranker.shared_head:
        heads = {"lm_head.linear_head.weight": reranker.head(layer)}
    else:
        heads = {f"lm_head.{i}.linear_head.weight": reranker.head(k) for i, k in enumerate(exits)}
    tensors |= {name: head.detach()[None].to(reranker.backbone.dtype) for name, head in heads.items()}
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    tokenizer = write_plain_tokenizer(reranker.prompt, reranker.num_embeddings, folder)
    config = _minicpm_config(reranker, layer) | {"pad_token_id": tokenizer.pad_token_id}
    write_json(folder / "config.json", config)
    template = reranker.prompt.template
    assert template is not None  # as encoders differ from upstream
    readme = upstream_readme(reranker, layer, template.instruction)
    (folder / "README.md").write_text(readme, encoding="utf-8")


def check_upstream(reranker: LayerwiseReranker) -> None:
    """Check that upstream's class and prompt give the scores of a reranker. Raises ValueError if they do not."""
    if differences := list(_differences_to_upstream(reranker)):
        raise ValueError(f"FlagEmbedding can't read this reranker: {'; '.join(differences)}")


def _differences_to_upstream(reranker: LayerwiseReranker) -> Iterator[str]:
    """Yield the reasons why upstream's class or prompt would give other scores."""
    config, tokenizer, template = reranker.config, reranker.prompt.tokenizer, reranker.prompt.template
    if config.model_type != "llama":
        yield f"its layerwise class is MiniCPM, which can hold a llama but not a {config.model_type}"
        return
    if config.attention_bias or config.mlp_bias:
        yield "MiniCPM's linear layers have no biases, but this backbone's do"
    if config.head_dim * config.num_attention_heads != config.hidden_size:
        yield (
            f"MiniCPM's attention heads divide the hidden size, but {config.num_attention_heads} x {config.head_dim} "
            f"is not {config.hidden_size}"
        )
    if config.rope_parameters["rope_type"] not in ("default", "linear"):
        yield f"MiniCPM has no rotary embedding of type {config.rope_parameters['rope_type']}"
    if reranker.pooling != "last":
        yield f"it reads the last token, but this reranker reads the {reranker.pooling}"
    if reranker.head_every > 1:
        yield f"it has a head at every layer, but this reranker at layers {describe_layers(reranker.exits)}"
    if reranker.norms:
        yield "it normalises all exits by the final norm, but the exits of this reranker have norms of their own"
    if template is None or template != PromptTemplate(instruction=template.instruction):
        yield (
            "it writes `A: query`, `B: passage` and an instruction, but this reranker was trained with another template"
        )
    if tokenizer.bos_token is None or tokenizer.bos_token == tokenizer.pad_token:
        yield "it starts each row with a bos token, but this reranker does not"


def _minicpm_config(reranker: LayerwiseReranker, layer: int) -> dict[str, Any]:
    """Translate the config of a Llama cut to `layer` blocks."""
    config = reranker.config.to_dict()
    rope = config["rope_parameters"]
    linear = {"type": "linear", "factor": rope.get("factor")}
    return {key: config.get(key) for key in SAME_IN_LLAMA} | {
        "architectures": ["LayerWiseMiniCPMForCausalLM"],
        "model_type": "minicpm",
        "num_hidden_layers": layer,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": linear if rope["rope_type"] == "linear" else None,
        "scale_emb": 1,
        "scale_depth": math.sqrt(layer),  # the class divides it by √num_hidden_layers
        "dim_model_base": config["hidden_size"],
        "start_layer": reranker.start_layer,
        "head_multi": not reranker.shared_head,
        "head_type": "simple",
        "pretraining_tp": 1,
        "tie_word_embeddings": False,
        "use_cache": False,
        "torch_dtype": str(reranker.backbone.dtype).removeprefix("torch."),
    }
