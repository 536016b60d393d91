"""Tests of FlagEmbedding's calling convention: its documented usage, and batches that are not groups."""

from __future__ import annotations

import pytest
import tiny
import torch

from lwr import BiEncoderModel

QUERY = "how is a string decoded?"
PASSAGES = [
    "Decode a JSON document from a string.",
    "Return the Python representation, which is a string with the whole of a JSON document in it, of `s`.",
    "Serialize.",
    "Raise ValueError if the document ends too early or has something after its end.",
]


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_documented_usage_of_upstream(side):
    model, tokenizer = tiny.causal_lm("llama"), tiny.tokenizer(encoder=False)
    texts = [f"A: {QUERY}\nB: {passage}\nIs it an answer? Yes" for passage in PASSAGES]
    ids = [[1, *tokenizer(text, add_special_tokens=False)["input_ids"]] for text in texts]
    longest = max(map(len, ids))
    inputs = {"input_ids": [], "attention_mask": [], "labels": []}
    for row in ids:
        padding = longest - len(row)
        columns = {
            "input_ids": row,
            "attention_mask": [1] * len(row),
            "labels": [-100] * (len(row) - 1) + row[-1:],
        }
        for (name, values), filler in zip(columns.items(), (0, 0, -100), strict=True):
            inputs[name].append(
                [filler] * padding + values if side == "left" else values + [filler] * padding
            )
    inputs = {name: torch.tensor(values) for name, values in inputs.items()}

    m = BiEncoderModel(model, tokenizer, train_batch_size=2, start_layer=2)
    m(pair=inputs).loss.backward()
    deepest, at_layer_4, at_layer_2 = m.encode(inputs)[-1], m.encode(inputs)[4 - 2], m.encode(inputs)[2 - 2]

    assert all(head.grad.abs().max() > 0 for head in m.heads)
    assert torch.equal(deepest, at_layer_4)
    for row, by_row in zip(ids, deepest, strict=True):
        state = m.backbone(torch.tensor([row])).last_hidden_state[0, len(row) - 2]
        close(by_row, state @ m.head(4))
    for row, by_row in zip(ids, at_layer_2, strict=True):
        states = m.backbone(torch.tensor([row]), output_hidden_states=True).hidden_states
        close(by_row, m.backbone.norm(states[2][0, len(row) - 2]) @ m.head(2))
    m.eval()
    assert m(pair=inputs).loss is None
    assert len(m(pair=inputs).scores) == 3


def test_rows_that_make_no_groups_are_refused():
    model = BiEncoderModel(tiny.backbone("llama"), train_batch_size=3, start_layer=1).train()
    ids = torch.tensor([[3, 4], [5, 6], [7, 8], [9, 10]])
    with pytest.raises(ValueError, match="4 rows do not make 3 groups"):
        model({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
