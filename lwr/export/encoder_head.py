"""Write the linear head of an encoder's exit as the nonlinear head of its stock sequence-classification class.

Our score is linear: score = head · state, where the state is that of the first token or the mean over all tokens. A
stock head applies tanh or GELU and sometimes a LayerNorm before its output layer. The weights written here keep these
functions in a range where they are linear, or where two of them add up to a linear function. A state written by a
LayerNorm is bounded, hence so is the score; it enters the head divided by a share of its bound (`_scale`) and is
multiplied back by the output layer. In float32 this costs about a millionth of the score.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PretrainedConfig

State = dict[str, Tensor]

TANH_GAIN = 2.0**-10
"""Factor of what enters tanh: tanh(x) = x except for a third of x³."""
STATE_GAIN = 2.0**-14
"""Factor of states: beside SCORE_GAIN they are negligible, but keep all their digits in half precision."""
SCORE_GAIN = 2.0**4
"""Factor of the mean score."""
REFERENCE = 2.0**14
"""Its square dominates a norm's variance, scores included. Half precision ends at 2**16."""
GELU_REFERENCE = 2.0**8
"""As REFERENCE, but smaller: it moves the norm's mean, and half precision rounds to a share of that mean."""


def attach_head(config: PretrainedConfig, state: State, head: Tensor, pooling: str) -> None:
    """Extend `config` and `state` in place to the sequence classifier whose logit is head · pooled state.

    Args:
        config: Config of the encoder, cut to its blocks.
        state: The encoder's tensors, under the names of the classifier.
        head: float [hidden].
        pooling: `mean` or `first`.

    Raises:
        ValueError: The construction for this architecture is not known.
    """
    if config.model_type == "modernbert":
        _attach_gelu_head(config, state, head, pooling)
    elif config.model_type == "bert":
        _attach_tanh_head(config, state, head, pooling, "bert", "bert.pooler.dense", "classifier")
    elif config.model_type == "xlm-roberta":
        _attach_tanh_head(config, state, head, pooling, "roberta", "classifier.dense", "classifier.out_proj")
    else:
        raise ValueError(
            f"{config.model_type}: writing its exits as a stock sequence classifier is not implemented; "
            "bert, xlm-roberta and modernbert can be exported"
        )


def _attach_tanh_head(
    config: PretrainedConfig, state: State, head: Tensor, pooling: str, base: str, dense: str, out: str
) -> None:
    """Attach a head that computes out(tanh(dense(h))) from the first token's state h.

    With scale = `_scale` and direction · h = head · h / scale (of the mean over tokens, where that is pooled):

    1. dense:  x_i = TANH_GAIN · direction · h for every i, so that no weight of `out` is too large for half precision
    2. tanh:   tanh(x_i) = x_i, as x_i is at most 4 · TANH_GAIN
    3. out:    logit = Σ_i scale / (TANH_GAIN · hidden) · x_i = head · h
    """
    hidden = config.hidden_size
    norm = f"{base}.encoder.layer.{config.num_hidden_layers - 1}.output.LayerNorm"
    scale = _scale(head, state[f"{norm}.weight"], state[f"{norm}.bias"])
    direction = head / scale  # [hidden]
    if pooling == "mean":
        direction = _add_averaging_block(config, state, f"{base}.encoder.layer", direction)
    state[f"{dense}.weight"] = (TANH_GAIN * direction).repeat(hidden, 1)  # [hidden, hidden]
    state[f"{dense}.bias"] = torch.zeros(hidden)
    state[f"{out}.weight"] = torch.full((1, hidden), scale / TANH_GAIN / hidden)
    state[f"{out}.bias"] = torch.zeros(1)


def _add_averaging_block(config: PretrainedConfig, state: State, blocks: str, direction: Tensor) -> Tensor:
    """Append a block after which the first token's state holds m, the mean over tokens of direction · h.

    h = weight · n + bias is a state that the last LayerNorm wrote; n is normalised: Σ_i n_i = 0. `last` is the last of
    the components 0..hidden-1; it is the one that carries m because a sum that starts with small terms keeps them.

    1. the LayerNorm before:  x_i = STATE_GAIN · n_i, x_last = 0; n_last = -Σ n_i of the others remains known
    2. values, component 0:   v = read · x + direction · bias = direction · h,
       with read_i = (direction_i · weight_i - direction_last · weight_last) / STATE_GAIN
    3. queries and keys of 0: attention is uniform over the tokens that are not padding, so it gives m = mean of v
    4. attention's output:    y_last = SCORE_GAIN · m, y_0 = REFERENCE, y_1 = -REFERENCE, other y_i = 0
    5. LayerNorm of y + x:    z = (y + x - mean) / (REFERENCE · √(2 / hidden)), as REFERENCE dominates the variance
    6. feed-forward of 0, LayerNorm of z, whose variance is 1, with weight √(2 / hidden · (1 + eps)):
       z'_last = (SCORE_GAIN · m - mean) / REFERENCE
    7. read-out: m = REFERENCE / SCORE_GAIN · (z'_last - the average of z'_2..z'_(last-1)), which takes out `mean`

    Args:
        config: Config of the encoder; gets one more block.
        state: The classifier's tensors; gets that block's.
        blocks: Name of the list of blocks.
        direction: float [hidden].

    Returns:
        float [hidden], the vector whose product with the first token's new state is m (line 7).
    """
    hidden, depth = config.hidden_size, config.num_hidden_layers
    last = hidden - 1
    previous, new = f"{blocks}.{depth - 1}.", f"{blocks}.{depth}."
    norm = f"{previous}output.LayerNorm."
    weight, bias = state[f"{norm}weight"], state[f"{norm}bias"]
    state[f"{norm}weight"] = STATE_GAIN * (1 - _vector(hidden, {last: 1.0}))  # 1
    state[f"{norm}bias"] = torch.zeros(hidden)

    for name in [name for name in state if name.startswith(previous)]:
        state[new + name.removeprefix(previous)] = torch.zeros_like(state[name])  # 3, 6
    attention = f"{new}attention."
    read = (direction * weight - direction[last] * weight[last]) / STATE_GAIN
    state[f"{attention}self.value.weight"] = _matrix(hidden, {0: read})  # 2
    state[f"{attention}self.value.bias"] = _vector(hidden, {0: float(direction @ bias)})
    state[f"{attention}output.dense.weight"] = _matrix(hidden, {last: _vector(hidden, {0: SCORE_GAIN})})  # 4
    state[f"{attention}output.dense.bias"] = _vector(hidden, {0: REFERENCE, 1: -REFERENCE})
    state[f"{attention}output.LayerNorm.weight"] = torch.ones(hidden)  # 5
    deviation = math.sqrt(2 / hidden * (1 + config.layer_norm_eps))
    state[f"{new}output.LayerNorm.weight"] = torch.full((hidden,), deviation)  # 6
    config.num_hidden_layers = depth + 1

    share = -1 / (hidden - 3)
    readout = torch.tensor([0.0, 0.0] + [share] * (hidden - 3) + [1.0])
    return readout * (REFERENCE / SCORE_GAIN)  # 7


def _attach_gelu_head(config: PretrainedConfig, state: State, head: Tensor, pooling: str) -> None:
    """Attach ModernBERT's head, which computes classifier(LayerNorm(GELU(dense(h)))) from the pooled state h.

    With scale = `_scale` and u = head · h / scale:

    1. dense:       d_0 = u, d_1 = -u, d_2 = GELU_REFERENCE, other d_i = 0
    2. GELU:        g_0 - g_1 = GELU(u) - GELU(-u) = u for every u, and g_2 = GELU_REFERENCE
    3. LayerNorm:   divides by √(variance + eps), where GELU_REFERENCE dominates the variance; its weight is that root,
       so it only subtracts the mean
    4. classifier:  logit = scale · (g_0 - g_1) = head · h; the mean cancels out
    """
    hidden = config.hidden_size
    scale = _scale(head, state["model.final_norm.weight"], state.get("model.final_norm.bias"))
    config.classifier_pooling = "mean" if pooling == "mean" else "cls"
    config.classifier_activation, config.classifier_bias = "gelu", True
    state["head.dense.weight"] = _matrix(hidden, {0: head / scale, 1: -head / scale})  # 1
    state["head.dense.bias"] = _vector(hidden, {2: GELU_REFERENCE})
    variance = GELU_REFERENCE**2 / hidden - (GELU_REFERENCE / hidden) ** 2
    state["head.norm.weight"] = torch.full((hidden,), math.sqrt(variance + config.norm_eps))  # 3
    if config.norm_bias:
        state["head.norm.bias"] = torch.zeros(hidden)
    state["classifier.weight"] = _vector(hidden, {0: scale, 1: -scale})[None]  # 4
    state["classifier.bias"] = torch.zeros(1)


def _scale(head: Tensor, weight: Tensor, bias: Tensor | None) -> float:
    """Return a power of two between a quarter and a half of the bound of |head · h|.

    h = weight · n + bias is written by a LayerNorm, and |n| ≤ √hidden, so |head · h| ≤ |head · weight| √hidden +
    |head · bias|. A larger scale would round all scores more coarsely; with this one, a score at the bound is off by a
    few millionths of itself.
    """
    bound = float((head * weight).norm()) * math.sqrt(len(head))
    if bias is not None:
        bound += abs(float(head @ bias))
    return 2.0 ** math.ceil(math.log2(max(bound, TANH_GAIN)) - 2)


def _vector(hidden: int, values: Mapping[int, float]) -> Tensor:
    """Return float32 [hidden] of zeros except for `values`."""
    vector = torch.zeros(hidden)
    for i, value in values.items():
        vector[i] = value
    return vector


def _matrix(hidden: int, rows: Mapping[int, Tensor]) -> Tensor:
    """Return float32 [hidden, hidden] of zeros except for `rows`."""
    matrix = torch.zeros(hidden, hidden)
    for i, row in rows.items():
        matrix[i] = row.float()
    return matrix
