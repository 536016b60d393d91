"""The ONNX graph of an exit: its backbone, its pooling and its head.

The head is a product and a sum, not a linear layer, so that int8 leaves it in float32. There is no stock head (see
`lwr.export.encoder_head`), whose constants hide the score from int8.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from lwr.export.classifier import fit_pairs
from lwr.export.pair_tokenizer import PairTokenizer
from lwr.export.truncate import build_backbone
from lwr.model.reranker import LayerwiseReranker


class ExitGraph(nn.Module):
    """Compute an exit's score from the tokenizer's features, in the order of `names`."""

    def __init__(
        self, backbone: PreTrainedModel, head: Tensor, pooling: str, cap: float | None, names: list[str]
    ):
        super().__init__()
        self.backbone, self.pooling, self.cap, self.names = backbone, pooling, cap, names
        self.register_buffer("head", head)  # [hidden]

    def forward(self, *features: Tensor) -> Tensor:
        """Score rows that are padded on the right.

        Args:
            features: int64 [rows, tokens] each.

        Returns:
            float32 [rows, 1].
        """
        inputs = dict(zip(self.names, features, strict=True))
        mask = inputs["attention_mask"]
        states = self.backbone(**inputs).last_hidden_state  # [rows, tokens, hidden]
        position = mask.cumsum(dim=1)  # 1 at the first token
        match self.pooling:
            case "first":
                read = mask * (position == 1)
            case "last":
                read = mask * (position == mask.sum(dim=1, keepdim=True))
            case _:
                read = mask
        read = read.to(states.dtype)[:, :, None]  # [rows, tokens, 1]
        pooled = (states * read).sum(dim=1) / read.sum(dim=1)  # [rows, hidden]
        score = (pooled * self.head).sum(dim=-1, keepdim=True)
        return score if self.cap is None else self.cap * torch.tanh(score / self.cap)


def trace_exit(reranker: LayerwiseReranker, layer: int, pair: PairTokenizer, file: Path) -> None:
    """Write the graph of exit `layer` as ONNX.

    Its inputs are those of the tokenizer, int64 [batch, tokens]; its output is `logits`, float32 [batch, 1].
    """
    with TemporaryDirectory() as folder:  # loaded again, because a built backbone cannot run
        build_backbone(reranker, layer).save_pretrained(folder)
        backbone = AutoModel.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
    texts = [pair.write(*texts) for texts in fit_pairs(reranker.prompt)[:2]]
    queries, passages = zip(*texts, strict=True)
    features = pair.tokenizer(list(queries), list(passages), padding=True, return_tensors="pt")
    names = list(features)
    head = reranker.head(layer).detach().float()
    graph = ExitGraph(backbone, head, reranker.pooling, reranker.score_cap, names).eval()
    sizes = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("tokens", min=2)}
    program = torch.onnx.export(
        graph,
        tuple(features.values()),
        dynamo=True,
        verbose=False,
        input_names=names,
        output_names=["logits"],
        dynamic_shapes=(tuple(sizes for _ in names),),
    )
    assert program is not None  # as dynamo=True returns a program
    program.save(file)
