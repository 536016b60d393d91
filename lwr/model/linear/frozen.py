"""Hold the frozen linear layers of a backbone in int8 or in 4 bits while an adapter is trained, by bitsandbytes.

int8: Dettmers et al. 2022, LLM.int8(), arXiv 2208.07339. nf4: Dettmers et al. 2023, QLoRA, arXiv 2305.14314.

The layers are replaced after the backbone was loaded, not by the loader of transformers, which would write the
quantisation into the config.json of the trained reranker and also quantise heads that are read from the checkpoint.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec

from torch import nn
from transformers import PreTrainedModel

from lwr.common.errors import missing_extra
from lwr.config.training import LoraConfig
from lwr.model.linear.replacement import replace_linear_layers


def check_base_precision(lora: LoraConfig | None) -> None:
    """Raise BadInput if the layers of a frozen backbone are to be quantised, and bitsandbytes is not installed."""
    if lora is not None and lora.base_precision is not None and find_spec("bitsandbytes") is None:
        raise missing_extra(f"lora.base_precision: {lora.base_precision}", "bitsandbytes", "bitsandbytes")


def quantise_frozen(backbone: PreTrainedModel, blocks: nn.ModuleList, lora: LoraConfig) -> None:
    """Replace each linear layer in the blocks of a backbone, in place, by one that bitsandbytes quantises.

    Its weights become int8 or 4 bits when the backbone is moved to its device, which may be the CPU.

    Raises:
        ValueError: The blocks have no linear layers.
    """
    import bitsandbytes

    # it would say for each layer that int8 layers take inputs in float16
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)

    def quantise(linear: nn.Linear) -> nn.Module:
        inputs, outputs, weights = linear.in_features, linear.out_features, linear.weight.data
        if lora.base_precision == "nf4":
            quantised = bitsandbytes.nn.Linear4bit(inputs, outputs, quant_type="nf4", device="meta")
            quantised.weight = bitsandbytes.nn.Params4bit(weights, requires_grad=False, quant_type="nf4")
        else:
            quantised = bitsandbytes.nn.Linear8bitLt(inputs, outputs, has_fp16_weights=False, device="meta")
            quantised.weight = bitsandbytes.nn.Int8Params(weights, requires_grad=False)
        quantised.bias = linear.bias
        return quantised

    setting = f"lora.base_precision: {lora.base_precision}"
    if replace_linear_layers(blocks, lambda module: type(module) is nn.Linear, quantise, setting) == 0:
        raise ValueError(
            f"lora.base_precision: the blocks of {type(blocks[0]).__name__} have no linear layers; leave it out"
        )
    # peft reads these to choose the class of its layers
    vars(backbone)["is_loaded_in_4bit"] = lora.base_precision == "nf4"
    vars(backbone)["is_loaded_in_8bit"] = lora.base_precision == "int8"
