"""Score with a decoder that answers yes or no to a prompt.

The method is Qwen3-Reranker's (Zhang et al. 2025, arXiv 2506.05176) and that of Nogueira et al. 2020 (monoT5), with the
difference of the two logits in place of the logarithm of the probability: it is not bounded above.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from lwr.common.errors import BadInput
from lwr.config.teachers.sections import YesNoTeacher
from lwr.scoring.loading import load_checkpoint
from lwr.scoring.query_candidates import QueryCandidates, tokenize_ahead
from lwr.scoring.teachers.loading import make_prompt


def score_with_yes_no(
    teacher: YesNoTeacher, queries: Sequence[QueryCandidates], on_scored: Callable[[int], object]
) -> Iterator[tuple[Sequence[QueryCandidates], np.ndarray]]:
    """Yield chunks of queries, and logit(yes) - logit(no) of their pairs, float32 [pairs], query by query.

    Raises:
        BadInput: The checkpoint is missing or damaged, or an answer is not a token of its vocabulary.
    """
    loaded = load_checkpoint(teacher, AutoModelForCausalLM, "left")
    prompt = make_prompt(teacher, loaded, teacher.template)
    yes = _token_id(loaded.tokenizer, teacher, "yes_token")
    no = _token_id(loaded.tokenizer, teacher, "no_token")

    def compute_batch(features: dict[str, Tensor]) -> Tensor:
        mask = features["attention_mask"]
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)  # [B, tokens]: padding on the left has none
        # the answer follows the last token
        logits = loaded.model(**features, position_ids=positions, logits_to_keep=1).logits[
            :, -1
        ]  # [B, vocabulary]
        return logits[:, yes].float() - logits[:, no].float()  # [B]

    for chunk, rows in tokenize_ahead(prompt, queries):
        yield chunk, loaded.compute(rows, compute_batch, on_scored).numpy()


def _token_id(tokenizer: PreTrainedTokenizerBase, teacher: YesNoTeacher, key: str) -> int:
    """Return the id of an answer; a checkpoint without tokenizer.json shows only here whether it has one."""
    token = getattr(teacher, key)
    vocabulary = tokenizer.get_vocab()
    if token not in vocabulary:
        raise BadInput(f"{teacher.model} has no token {token!r}; name the token of its vocabulary by `{key}`")
    return vocabulary[token]
