"""Write the linear head of an encoder's exit as the nonlinear head of its stock sequence-classification class.

Our score is linear: score = head · state, where the state is that of the first token or the mean over all tokens. A
stock head applies tanh, GELU or ReLU and sometimes a LayerNorm before its output layer. The weights written here keep
these functions in a range where they are linear, or where two of them add up to a linear function. A state written by a
norm is bounded, hence so is the score; it enters the head divided by a share of its bound (`_scale`) and is multiplied
back by the output layer. In float32 this costs about a millionth of the score.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.activations import ACT2FN

from lwr.model.layer_hooks import LayerStack

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


@dataclass(frozen=True)
class StockHead:
    """A head that computes out(activation(dense(h))) from the first token's state h.

    Attributes:
        dense: Name of its first linear layer in the classifier.
        out: Name of its output layer.
        activation: Name in ACT2FN of transformers.
    """

    dense: str
    out: str
    activation: str


@dataclass(frozen=True)
class PostNormBlock:
    """The names in a block that normalises its own output.

    Attributes:
        blocks: The list of blocks in the backbone.
        value: The linear layer of the values.
        output: The linear layer after attention.
        attention_norm: The norm after attention.
        norm: The norm of the block's output.
    """

    blocks: str = "encoder.layer"
    value: str = "attention.self.value"
    output: str = "attention.output.dense"
    attention_norm: str = "attention.output.LayerNorm"
    norm: str = "output.LayerNorm"


BLOCKS = {
    "deberta": PostNormBlock(value="attention.self.in_proj"),
    "deberta-v2": PostNormBlock(value="attention.self.value_proj"),
    "distilbert": PostNormBlock(
        "transformer.layer", "attention.v_lin", "attention.out_lin", "sa_layer_norm", "output_layer_norm"
    ),
    "nomic_bert": PostNormBlock("layers", norm="post_mlp_layernorm"),
}
"""Architecture -> the names in its blocks; those of BERT for all others."""
NOT_AVERAGED = {
    "esm": "its blocks add to the state of the block before them, which cannot be replaced by a mean",
    "megatron-bert": "its blocks add to the state of the block before them, which cannot be replaced by a mean",
    "mobilebert": "its blocks narrow the state before attention, so that no block can take the mean",
    "mpnet": "the relative positions that all its blocks share weigh the tokens, so that no block can take the mean",
    "nomic_bert": "its blocks have no biases, which a block that takes the mean needs",
}
"""Architecture -> the reason why its stock classifier cannot read the mean over tokens."""


def attach_head(
    config: PretrainedConfig, state: State, base: str, stack: LayerStack, head: Tensor, pooling: str
) -> None:
    """Extend `config` and `state` in place to the sequence classifier whose logit is head · pooled state.

    Args:
        config: Config of the encoder, cut to its blocks.
        state: The encoder's tensors, under the names of the classifier.
        base: Name of the encoder in the classifier.
        stack: The encoder's blocks, not cut, and final norm.
        head: float [hidden].
        pooling: `mean` or `first`.

    Raises:
        ValueError: The construction for this architecture is not known, or it cannot pool so.
    """
    kind = config.model_type
    if pooling == "mean" and kind in NOT_AVERAGED:
        raise ValueError(
            f"{kind}: its stock sequence classifier reads the first token, and {NOT_AVERAGED[kind]}; a reranker "
            "trained with `pooling: first` can be exported; serve this one with lwr"
        )
    if kind == "mobilebert":
        config.classifier_activation = False  # leaves out dense and tanh
        state["classifier.weight"], state["classifier.bias"] = head[None], torch.zeros(1)
        return
    if kind == "modernbert":
        config.classifier_pooling = "mean" if pooling == "mean" else "cls"
        _attach_gelu_norm_head(config, state, head, _scale(head, stack.norm))
        return
    stock, block = _find_stock_head(config, base), BLOCKS.get(kind, PostNormBlock())
    norm = stack.norm
    if isinstance(norm, nn.Identity):
        norm = stack.blocks[config.num_hidden_layers - 1].get_submodule(block.norm)
    scale = _scale(head, norm)
    direction = head / scale  # [hidden]
    if kind == "eurobert":
        config.classifier_pooling = "mean" if pooling == "mean" else "bos"
    elif pooling == "mean":
        direction = _add_averaging_block(config, state, base, block, direction)
    if stock.activation == "tanh":
        _attach_tanh_head(state, stock, direction, scale)
    else:
        _attach_mirrored_head(state, stock, direction, scale)


def _find_stock_head(config: PretrainedConfig, base: str) -> StockHead:
    """Return the head of an architecture's stock classifier. Raises ValueError if it is not known."""
    match config.model_type:
        case "bert" | "ernie" | "layoutlm" | "megatron-bert" | "nomic_bert" | "rembert":
            return StockHead(f"{base}.pooler.dense", "classifier", "tanh")
        case "camembert" | "data2vec-text" | "esm" | "mpnet" | "roberta" | "xlm-roberta":
            return StockHead("classifier.dense", "classifier.out_proj", "tanh")
        case "big_bird" | "roformer":
            return StockHead("classifier.dense", "classifier.out_proj", config.hidden_act)
        case "electra":
            return StockHead("classifier.dense", "classifier.out_proj", "gelu")
        case "deberta" | "deberta-v2":
            return StockHead("pooler.dense", "classifier", config.pooler_hidden_act)
        case "distilbert":
            return StockHead("pre_classifier", "classifier", "relu")
        case "eurobert":
            return StockHead("dense", "classifier", "gelu")
    raise ValueError(
        f"{config.model_type}: writing its exits as a stock sequence classifier is not implemented; "
        "docs/how-to/own-base-model.md lists the architectures that can be exported"
    )


def _attach_tanh_head(state: State, stock: StockHead, direction: Tensor, scale: float) -> None:
    """Attach a head with tanh, whose logit is scale · direction · h.

    1. dense:  x_i = TANH_GAIN · direction · h for every i, so that no weight of `out` is too large for half precision
    2. tanh:   tanh(x_i) = x_i, as x_i is at most 4 · TANH_GAIN
    3. out:    logit = Σ_i scale / (TANH_GAIN · hidden) · x_i
    """
    hidden = len(direction)
    state[f"{stock.dense}.weight"] = (TANH_GAIN * direction).repeat(hidden, 1)  # [hidden, hidden]
    state[f"{stock.dense}.bias"] = torch.zeros(hidden)
    state[f"{stock.out}.weight"] = torch.full((1, hidden), scale / TANH_GAIN / hidden)
    state[f"{stock.out}.bias"] = torch.zeros(1)


def _attach_mirrored_head(state: State, stock: StockHead, direction: Tensor, scale: float) -> None:
    """Attach a head with an activation f for which f(x) - f(-x) = x, such as ReLU, GELU and SiLU.

    1. dense:       x_0 = direction · h, x_1 = -x_0, other x_i = 0
    2. activation:  f(x_0) - f(x_1) = x_0
    3. out:         logit = scale · (f(x_0) - f(x_1))

    Raises:
        ValueError: The activation is not such a function.
    """
    sample = torch.linspace(-4, 4, 101, dtype=torch.float64)  # `_scale` keeps x_0 in this range
    activation = ACT2FN[stock.activation]
    if not torch.allclose(activation(sample) - activation(-sample), sample):
        raise ValueError(
            f"its stock sequence classifier applies {stock.activation}, which does not pass on a linear score; "
            "serve this reranker with lwr"
        )
    hidden = len(direction)
    state[f"{stock.dense}.weight"] = _matrix(hidden, {0: direction, 1: -direction})
    state[f"{stock.dense}.bias"] = torch.zeros(hidden)
    state[f"{stock.out}.weight"] = _vector(hidden, {0: scale, 1: -scale})[None]
    state[f"{stock.out}.bias"] = torch.zeros(1)


def _add_averaging_block(
    config: PretrainedConfig, state: State, base: str, block: PostNormBlock, direction: Tensor
) -> Tensor:
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
        base: Name of the encoder in the classifier.
        block: The names in its blocks.
        direction: float [hidden].

    Returns:
        float [hidden], the vector whose product with the first token's new state is m (line 7).
    """
    hidden, depth = config.hidden_size, config.num_hidden_layers
    last = hidden - 1
    previous, new = f"{base}.{block.blocks}.{depth - 1}.", f"{base}.{block.blocks}.{depth}."
    norm = f"{previous}{block.norm}"
    weight, bias = state[f"{norm}.weight"], state[f"{norm}.bias"]
    state[f"{norm}.weight"] = STATE_GAIN * (1 - _vector(hidden, {last: 1.0}))  # 1
    state[f"{norm}.bias"] = torch.zeros(hidden)

    for name in [name for name in state if name.startswith(previous)]:
        state[new + name.removeprefix(previous)] = torch.zeros_like(state[name])  # 3, 6
    read = (direction * weight - direction[last] * weight[last]) / STATE_GAIN
    _set_value(config, state, f"{new}{block.value}", read, float(direction @ bias))  # 2
    state[f"{new}{block.output}.weight"] = _matrix(hidden, {last: _vector(hidden, {0: SCORE_GAIN})})  # 4
    state[f"{new}{block.output}.bias"] = _vector(hidden, {0: REFERENCE, 1: -REFERENCE})
    state[f"{new}{block.attention_norm}.weight"] = torch.ones(hidden)  # 5
    eps = getattr(config, "layer_norm_eps", 1e-12)  # DistilBERT's is fixed
    state[f"{new}{block.norm}.weight"] = torch.full((hidden,), math.sqrt(2 / hidden * (1 + eps)))  # 6
    config.num_hidden_layers = depth + 1

    share = -1 / (hidden - 3)
    readout = torch.tensor([0.0, 0.0] + [share] * (hidden - 3) + [1.0])
    return readout * (REFERENCE / SCORE_GAIN)  # 7


def _set_value(config: PretrainedConfig, state: State, value: str, weight: Tensor, bias: float) -> None:
    """Let component 0 of the values be weight · x + bias, and all others 0. Queries and keys remain 0.

    DeBERTa's first version has one linear layer for queries, keys and values of each head in turn, and their biases
    apart.
    """
    hidden = config.hidden_size
    if config.model_type == "deberta":
        row = 2 * hidden // config.num_attention_heads
        state[f"{value}.weight"][row] = weight
        state[f"{value.rpartition('.')[0]}.v_bias"] = _vector(hidden, {0: bias})
    else:
        state[f"{value}.weight"] = _matrix(hidden, {0: weight})
        state[f"{value}.bias"] = _vector(hidden, {0: bias})


def _attach_gelu_norm_head(config: PretrainedConfig, state: State, head: Tensor, scale: float) -> None:
    """Attach ModernBERT's head, which computes classifier(LayerNorm(GELU(dense(h)))) from the pooled state h.

    With u = head · h / scale:

    1. dense:       d_0 = u, d_1 = -u, d_2 = GELU_REFERENCE, other d_i = 0
    2. GELU:        g_0 - g_1 = GELU(u) - GELU(-u) = u for every u, and g_2 = GELU_REFERENCE
    3. LayerNorm:   divides by √(variance + eps), where GELU_REFERENCE dominates the variance; its weight is that root,
       so it only subtracts the mean
    4. classifier:  logit = scale · (g_0 - g_1) = head · h; the mean cancels out
    """
    hidden = config.hidden_size
    config.classifier_activation, config.classifier_bias = "gelu", True
    state["head.dense.weight"] = _matrix(hidden, {0: head / scale, 1: -head / scale})  # 1
    state["head.dense.bias"] = _vector(hidden, {2: GELU_REFERENCE})
    variance = GELU_REFERENCE**2 / hidden - (GELU_REFERENCE / hidden) ** 2
    state["head.norm.weight"] = torch.full((hidden,), math.sqrt(variance + config.norm_eps))  # 3
    if config.norm_bias:
        state["head.norm.bias"] = torch.zeros(hidden)
    state["classifier.weight"] = _vector(hidden, {0: scale, 1: -scale})[None]  # 4
    state["classifier.bias"] = torch.zeros(1)


def _scale(head: Tensor, norm: nn.Module) -> float:
    """Return a power of two between a quarter and a half of the bound of |head · h|, where `norm` wrote the state h.

    h = weight · n + bias, and |n| ≤ √hidden, so |head · h| ≤ |head · weight| √hidden + |head · bias|. A larger scale
    would round all scores more coarsely; with this one, a score at the bound is off by a few millionths of itself.
    """
    parameters = {name: parameter.float() for name, parameter in norm.named_parameters()}
    bound = float((head * parameters["weight"]).norm()) * math.sqrt(len(head))
    if "bias" in parameters:
        bound += abs(float(head @ parameters["bias"]))
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
