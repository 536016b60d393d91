"""An encoder's exit in the shape of its stock sequence-classification class, whose head has more in it than ours.

Ours is linear: score = w · mean of the states (or w · first state). A stock head has a tanh or a GELU, and a norm,
on its way. Each can be kept where it is a straight line. A state that a LayerNorm wrote is bounded, so a score is;
divided by a share of its bound (`_scale`) it goes through the head as a small number, and is multiplied back at the
end. What is lost is about a millionth of that in float32.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

State = dict[str, Tensor]

SMALL = 2.0**-10  # tanh(x) is x here, but for a third of SMALL² of it
FAINT = 2.0**-14  # of a state that must not be seen beside CLEAR, yet keep its digits in half precision
CLEAR = 2.0**4  # of the score
LOUD = 2.0**14  # beside it CLEAR doesn't count in a norm's variance; half precision ends at 2**16


def close(config: PretrainedConfig, state: State, head: Tensor, pooling: str) -> None:
    """Give `config` and `state` what makes them the sequence classifier whose logit is our score, in place.

    config: of the encoder, cut to its blocks. state: its tensors under the classifier's names. head: float [hidden].
    pooling: `mean` or `first`. Raises ValueError for encoders whose head can't be kept straight.
    """
    if config.model_type == "modernbert":
        _close_modernbert(config, state, head, pooling)
        return
    if config.model_type == "bert":
        base, dense, out = "bert", "bert.pooler.dense", "classifier"
    elif config.model_type == "xlm-roberta":
        base, dense, out = "roberta", "classifier.dense", "classifier.out_proj"
    else:
        raise ValueError(
            f"{config.model_type}: no way is known to write its exits as a stock sequence classifier; "
            "bert, xlm-roberta and modernbert can be exported"
        )
    hidden = config.hidden_size
    last = f"{base}.encoder.layer.{config.num_hidden_layers - 1}.output.LayerNorm"
    scale = _scale(head, state[f"{last}.weight"], state[f"{last}.bias"])
    if pooling == "mean":
        direction = _add_averaging_block(config, state, f"{base}.encoder.layer", head / scale)
    else:
        direction = head / scale
    # in every row, so that no weight is too large for half precision
    state[f"{dense}.weight"] = (SMALL * direction).repeat(hidden, 1)
    state[f"{dense}.bias"] = torch.zeros(hidden)
    state[f"{out}.weight"] = torch.full((1, hidden), scale / SMALL / hidden)
    state[f"{out}.bias"] = torch.zeros(1)


def _add_averaging_block(config: PretrainedConfig, state: State, blocks: str, w: Tensor) -> Tensor:
    """Add a block after which the first token's state holds w · mean of the states; float [hidden] that reads it.

    Without queries and keys, attention is the mean over all tokens that don't pad. Its value is w · state, and its
    output goes to the last component. The rest of the block must let that through: the state that is added, and norms.
    - The last component of a state h = weight · n + bias is left out of what the block reads, so that nothing is added
      to the mean there. Nothing is lost: a LayerNorm's n sums to 0, so its last is known from all others.
    - Components 0 and 1 become ± a constant beside which the variance of the others vanishes: the first norm divides
      by that constant, the second by 1.
    - Beside such a constant a norm's own mean is rounded, the same for every component: the last is read as its
      distance from the mean of all the quiet ones. (It is the last, for a sum that starts with small terms to keep
      them.)
    """
    hidden, k = config.hidden_size, config.num_hidden_layers
    last = hidden - 1
    before, new = f"{blocks}.{k - 1}.", f"{blocks}.{k}."
    norm = f"{before}output.LayerNorm."
    weight, bias = state[f"{norm}weight"], state[f"{norm}bias"]
    state[f"{norm}weight"] = FAINT * (1 - _at(hidden, {last: 1.0}))
    state[f"{norm}bias"] = torch.zeros(hidden)

    for name in [name for name in state if name.startswith(before)]:
        state[new + name.removeprefix(before)] = torch.zeros_like(state[name])
    attention = f"{new}attention."
    read = (w * weight - w[last] * weight[last]) / FAINT
    state[f"{attention}self.value.weight"] = _rows(hidden, {0: read})
    state[f"{attention}self.value.bias"] = _at(hidden, {0: float(w @ bias)})
    state[f"{attention}output.dense.weight"] = _rows(hidden, {last: _at(hidden, {0: CLEAR})})
    state[f"{attention}output.dense.bias"] = _at(hidden, {0: LOUD, 1: -LOUD})
    state[f"{attention}output.LayerNorm.weight"] = torch.ones(hidden)
    deviation = math.sqrt(
        2 / hidden * (1 + config.layer_norm_eps)
    )  # of (1, -1, 0, 0, ...), once more normalised
    state[f"{new}output.LayerNorm.weight"] = torch.full((hidden,), deviation)
    config.num_hidden_layers = k + 1

    quiet = -1 / (hidden - 3)
    apart = torch.tensor([0.0, 0.0] + [quiet] * (hidden - 3) + [1.0])
    return apart * (LOUD / CLEAR)


def _close_modernbert(config: PretrainedConfig, state: State, head: Tensor, pooling: str) -> None:
    """Its head is Linear, GELU, LayerNorm, Linear: of components 0 and 1, GELU(x) - GELU(-x) is x, whatever x is.

    Component 2 is the constant beside which they don't count in the norm's variance.
    """
    hidden = config.hidden_size
    scale = _scale(head, state["model.final_norm.weight"], state.get("model.final_norm.bias"))
    loud = 2.0**8  # no louder: the norm's mean is loud / hidden, and half precision rounds to a share of that
    config.classifier_pooling = "mean" if pooling == "mean" else "cls"
    config.classifier_activation, config.classifier_bias = "gelu", True
    state["head.dense.weight"] = _rows(hidden, {0: head / scale, 1: -head / scale})
    state["head.dense.bias"] = _at(hidden, {2: loud})
    variance = loud**2 / hidden - (loud / hidden) ** 2
    state["head.norm.weight"] = torch.full((hidden,), math.sqrt(variance + config.norm_eps))
    if config.norm_bias:
        state["head.norm.bias"] = torch.zeros(hidden)
    state["classifier.weight"] = _at(hidden, {0: scale, 1: -scale})[None]
    state["classifier.bias"] = torch.zeros(1)


def _scale(head: Tensor, weight: Tensor, bias: Tensor | None) -> float:
    """A power of two, at most half a score's bound: a norm writes weight · n + bias, and n is at most √hidden long.

    A score that reached its bound would be off by a few millionths of itself more; what all lose grows with the scale.
    """
    most = float((head * weight).norm()) * math.sqrt(len(head))
    if bias is not None:
        most += abs(float(head @ bias))
    return 2.0 ** math.ceil(math.log2(max(most, SMALL)) - 2)


def _at(hidden: int, values: dict[int, Any]) -> Tensor:
    """float32 [hidden]: 0 but for `values`."""
    vector = torch.zeros(hidden)
    for i, value in values.items():
        vector[i] = value
    return vector


def _rows(hidden: int, rows: dict[int, Tensor]) -> Tensor:
    """float32 [hidden, hidden]: 0 but for `rows`."""
    matrix = torch.zeros(hidden, hidden)
    for i, row in rows.items():
        matrix[i] = row.float()
    return matrix
