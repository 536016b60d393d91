"""Read checkpoints in the layout of bge-reranker-v2.5-gemma2-lightweight, without remote code.

`cost_wise_gemma` is Gemma 2 with a relevance head at every layer from `start_layer` on, whose scores are soft-capped
(upstream: FlagEmbedding, inference/reranker/decoder_only/models/gemma_model.py). The backbone is read as a plain
`Gemma2Model`. Upstream's `compress_layers` [8] with `compress_ratio` 2 is the compression `8/2` of lwr.

Upstream's inference has a defect that is not repeated: it counts heads by place in `cutoff_layers`, so it scores a
single layer by the first head, whichever layer that is. Here each layer is scored by its own head.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from torch import Tensor
from transformers import Gemma2Config

from lwr.common.errors import BadInput
from lwr.common.json_lines import read_json
from lwr.config.model import PromptTemplate
from lwr.formats.checkpoint import read_config

TEMPLATE = PromptTemplate(instruction="Predict whether passage B contains an answer to query A.")
"""The prompt that upstream writes."""
NOT_GEMMA2 = {"model_type", "architectures", "auto_map", "start_layer", "layer_sep", "layer_wise"}
"""Keys of config.json that describe the heads, or name code that is not run."""


def is_lightweight(folder: Path) -> bool:
    """Return whether a checkpoint has this layout."""
    return read_config(folder).get("model_type") == "cost_wise_gemma"


def read_gemma2_config(folder: Path) -> Gemma2Config:
    """Read config.json as that of a Gemma 2."""
    return Gemma2Config(**{key: value for key, value in read_config(folder).items() if key not in NOT_GEMMA2})


def read_score_cap(folder: Path) -> float | None:
    """Read the bound of scores; None: there is none."""
    return read_config(folder).get("final_logit_softcapping")


def read_heads(folder: Path) -> dict[int, Tensor]:
    """Read the head of each layer, float32 [H].

    Raises:
        BadInput: There are no heads by layer, not at every layer, or one is missing; or a key of config.json is.
    """
    config = read_json(folder / "config.json", {"start_layer": int, "num_hidden_layers": int})
    if not config.get("layer_wise") or config.get("layer_sep", 1) != 1:
        raise BadInput(
            f"{folder / 'config.json'}: layer_wise is {config.get('layer_wise')} and layer_sep "
            f"{config.get('layer_sep')}; only checkpoints with a head at every layer are read (true and 1)"
        )
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as reader:
            names = [name for name in reader.keys() if name.startswith("lm_head.")]  # noqa: SIM118
            tensors |= {name: reader.get_tensor(name) for name in names}
    heads = {}
    for i, layer in enumerate(range(config["start_layer"], config["num_hidden_layers"] + 1)):
        name = f"lm_head.{i}.linear_head.weight"
        if name not in tensors:
            raise BadInput(f"{folder}: no tensor {name!r}, which its config.json promises; fetch it again")
        heads[layer] = tensors[name][0].float()
    return heads
