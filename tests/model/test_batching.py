"""Tests of padding and of batches under a token budget."""

from __future__ import annotations

import pytest
import tiny
from transformers import PreTrainedTokenizerFast

from lwr.model.batching import make_batches, pad
from lwr.model.prompt import Row

ROWS = [Row([5, 6, 7], [0, 0, 1]), Row([8], [0]), Row([9, 10], [0, 1])]


def tokenizer(**options) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tiny.tokenizer(encoder=False).backend_tokenizer, **options
    )


@pytest.mark.parametrize(
    ("side", "ids", "types"),
    [
        ("right", [[5, 6, 7], [8, 2, 2], [9, 10, 2]], [[0, 0, 1], [0, 0, 0], [0, 1, 0]]),
        ("left", [[5, 6, 7], [2, 2, 8], [2, 9, 10]], [[0, 0, 1], [0, 0, 0], [0, 0, 1]]),
    ],
)
def test_pad_uses_the_tokenizers_side(side, ids, types):
    features = pad(ROWS, tokenizer(pad_token="</s>", padding_side=side))
    assert features["input_ids"].tolist() == ids
    assert features["token_type_ids"].tolist() == types
    mask = [[int(i != 2) for i in row] for row in ids]
    assert features["attention_mask"].tolist() == mask


def test_pad_without_pad_token_fills_with_zero():
    features = pad([Row([5, 6], None), Row([7], None)], tokenizer())
    assert features.keys() == {"input_ids", "attention_mask"}
    assert features["input_ids"].tolist() == [[5, 6], [7, 0]]
    assert features["attention_mask"].tolist() == [[1, 1], [1, 0]]


def test_pad_token_without_embedding_fills_with_zero():
    rows = [Row([5, 6], None), Row([7], None)]
    features = pad(rows, tokenizer(pad_token="</s>"), num_embeddings=2)
    assert features["input_ids"].tolist() == [[5, 6], [7, 0]]
    assert features["attention_mask"].tolist() == [[1, 1], [1, 0]]


def test_batches_hold_every_row_once_longest_first_within_budget():
    lengths = [3, 9, 1, 4, 4, 30, 2, 8]
    rows = [Row([1] * length, None) for length in lengths]
    batches = make_batches(rows, tokens_per_batch=16)
    assert [[lengths[i] for i in batch] for batch in batches] == [[30], [9], [8, 4], [4, 3, 2, 1]]
    assert sorted(i for batch in batches for i in batch) == list(range(8))


def rows_of_query(query: int, *lengths: int) -> list[Row]:
    """Make rows of one query of five tokens and of passages of these lengths."""
    return [Row([query] * 5 + [1] * length, None, before_passage=5) for length in lengths]


def test_batches_group_by_query_if_that_saves_enough():
    rows = [
        row
        for pair in zip(rows_of_query(7, 9, 2, 8, 30), rows_of_query(6, 9, 9, 1, 2), strict=True)
        for row in pair
    ]
    assert make_batches(rows, tokens_per_batch=60, can_share_prefix=True) == [[1, 3, 7, 5], [6], [0, 4, 2]]
    together = [[6], [0, 1, 3, 4], [2, 7, 5]]
    assert make_batches(rows, tokens_per_batch=60) == together
    assert make_batches(rows, tokens_per_batch=1000, can_share_prefix=True) == [[6, 0, 1, 3, 4, 2, 7, 5]], (
        "too few tokens to split by query"
    )
    long = [Row(row.input_ids + [1] * 90, None, 5) for row in rows]
    assert make_batches(long, 200, can_share_prefix=True) == make_batches(long, 200), (
        "sharing five of a hundred tokens saves too little"
    )
