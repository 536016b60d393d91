"""Read the head of a cross-encoder, so that the heads of exits can begin as it.

A cross-encoder here is a sequence classifier of transformers with one label, by whose logit passages are ranked. Where
its head is linear on the pooled state, as that of decoders is, its row becomes the head of every exit. Other heads,
such as BERT's dense layer with tanh, are replaced by their linear approximation, and how well that ranks is stated.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lwr.common.errors import BadInput
from lwr.config.model import Pooling
from lwr.model.layer_hooks import LayerStack, evaluating_eagerly, find_layer_stack

PROBE_PAIRS = list(
    itertools.product(
        ["decode json from a string", "capital of France", "how long do cats live", "reset a password"],
        [
            "Parse a string that holds a JSON document, and return the object that it describes.",
            "Paris is the capital and largest city of France, on the Seine.",
            "Indoor cats usually live for 12 to 18 years.",
            "To set a new password, follow the link in the message that we sent to you.",
        ],
    )
)
"""Pairs on which the head of a cross-encoder is compared with its linear approximation; a quarter are relevant."""
LINEAR = 1e-3
"""Largest relative difference between derivatives of a logit up to which it counts as linear."""
NOT_LINEAR = (
    "WARNING: the cross-encoder's head is not linear, as the head of an exit is. Heads begin as its linear "
    "approximation, and before any training the deepest exit does not rank as the cross-encoder"
)
NO_CLASSIFIER_FIX = "give a cross-encoder with one label as the base model, or use another head_init"


@dataclass(frozen=True)
class CrossEncoderHead:
    """The head of a sequence classifier with one label, as a vector on the state of a pair.

    Attributes:
        weight: float32 [H], the derivative of the logit by the pooled state; for a linear head, its row.
        pooling: The state that it reads.
        is_linear: Whether the logit is weight · state, plus the same number for all pairs.
        bias: That number; for other heads, the mean difference on PROBE_PAIRS.
        agreement: Share of the comparisons of two PROBE_PAIRS that weight · state orders as the logit does.
    """

    weight: Tensor
    pooling: Pooling
    is_linear: bool
    bias: float
    agreement: float

    def describe(self) -> str:
        """Say what of the cross-encoder the heads begin with, and what they leave out."""
        if not self.is_linear:
            return (
                f"{NOT_LINEAR}; it orders {self.agreement:.0%} of the comparisons between {len(PROBE_PAIRS)} sample "
                "pairs as the cross-encoder does"
            )
        if abs(self.bias) < 1e-4:
            return "heads begin as the cross-encoder's head; the deepest exit gives its logits"
        return (
            "heads begin as the cross-encoder's head; the deepest exit ranks as it does, and its scores are "
            f"the logits less the bias {self.bias:.4g}"
        )

    def check_pooling(self, pooling: Pooling) -> None:
        """Raise BadInput if exits read another state than the cross-encoder's head."""
        if pooling != self.pooling:
            raise BadInput(
                f"the cross-encoder's head reads the state that `pooling: {self.pooling}` gives, but pooling is "
                f"`{pooling}`; set the base model's pooling to `{self.pooling}`"
            )


def check_classifier(model: str, config: PretrainedConfig) -> None:
    """Raise BadInput if transformers has no sequence classifier of a config, or it has more than one label."""
    try:
        with torch.device("meta"):
            AutoModelForSequenceClassification.from_config(copy.deepcopy(config))
    except ValueError as error:
        raise BadInput(
            f"{model}: transformers has no sequence classifier of {config.model_type}; {NO_CLASSIFIER_FIX}"
        ) from error
    if config.num_labels != 1:
        raise BadInput(
            f"{model}: by its config.json a sequence classifier has {config.num_labels} labels, but a cross-encoder "
            f"that ranks has one; {NO_CLASSIFIER_FIX}"
        )


def check_classifier_head(model: str, missing: set[str]) -> None:
    """Raise BadInput if a checkpoint lacks tensors of a sequence classifier's head, given by their names."""
    if missing:
        raise BadInput(
            f"{model}: its checkpoint lacks {min(missing)}, of the head of a sequence classifier; {NO_CLASSIFIER_FIX}"
        )


def read_cross_encoder_head(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> CrossEncoderHead:
    """Read the head of a sequence classifier with one label as a vector on the state of a pair.

    The vector is the derivative of the logit by the final hidden states [tokens, H], summed over tokens and averaged
    over PROBE_PAIRS. For a linear head that is its row, whatever its class names it.

    Raises:
        BadInput: The head reads neither the first token, nor the last, nor the mean of all.
    """
    backbone = cast(PreTrainedModel, model.base_model)
    stack = find_layer_stack(backbone)
    gradients, states, logits = [], [], []
    poolings: set[Pooling] = set()
    for query, passage in PROBE_PAIRS:
        features = tokenizer(query, passage, return_tensors="pt").to(model.device)
        with evaluating_eagerly(backbone):
            hidden, logit = _run_classifier(model, stack, features)
        (gradient,) = torch.autograd.grad(logit, hidden)  # [1, tokens, H]
        pooling = _find_pooling(gradient[0])
        if pooling is None:
            raise BadInput(
                f"{type(model).__name__}: its head reads neither the first token, nor the last, nor the mean over "
                f"tokens, so no exit can begin as it; {NO_CLASSIFIER_FIX}"
            )
        poolings.add(pooling)
        gradients.append(gradient[0].float().sum(dim=0))  # [H]
        hidden = hidden[0].detach().float()  # [tokens, H]
        states.append({"first": hidden[0], "last": hidden[-1], "mean": hidden.mean(dim=0)}[pooling])
        logits.append(float(logit.detach()))
    by_pair = torch.stack(gradients).double()  # [pairs, H], all equal if the head is linear
    weight = by_pair.mean(dim=0)
    scores, targets = torch.stack(states).double() @ weight, torch.tensor(logits).double()  # [pairs]
    return CrossEncoderHead(
        weight.float(),
        poolings.pop(),
        is_linear=bool((by_pair - weight).norm(dim=-1).max() <= LINEAR * weight.norm()),
        bias=float((targets - scores).mean()),
        agreement=_agreement(scores, targets),
    )


def _find_pooling(gradient: Tensor) -> Pooling | None:
    """Return the state that a logit reads by its derivative [tokens, H]; None if it is no pooling of ours."""
    read = gradient.abs().amax(dim=-1).nonzero().flatten().tolist()
    if read == [0]:
        return "first"
    if read == [len(gradient) - 1]:
        return "last"
    return "mean" if read and torch.allclose(gradient, gradient[:1]) else None


def _agreement(a: Tensor, b: Tensor) -> float:
    """Return the share of the pairs of entries that two vectors order alike."""
    i, j = torch.triu_indices(len(a), len(a), offset=1)
    return float(((a[i] > a[j]) == (b[i] > b[j])).float().mean())


def _run_classifier(
    model: PreTrainedModel, stack: LayerStack, features: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the final hidden states [1, tokens, H] of one pair, and the logit [] that depends on them alone."""
    seen: list[Tensor] = []

    def cut_graph(_: nn.Module, __: tuple, output: Any) -> Any:
        is_tensor = isinstance(output, Tensor)
        states = (output if is_tensor else output[0]).detach().requires_grad_()
        seen.append(states)
        return states if is_tensor else (states, *output[1:])

    last = stack.blocks[-1] if isinstance(stack.norm, nn.Identity) else stack.norm
    with last.register_forward_hook(cut_graph), torch.enable_grad():
        logit = model(**features).logits[0, 0]
    return seen[0], logit
