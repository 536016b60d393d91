"""Build the workload of all contenders: the same weights in each one's format, the same lists, the same batch.

The model is a Llama with random weights, 12 layers of width 256 and heads from layer 2 on; it equals a MiniCPM with
scale_emb 1 and scale_depth sqrt(12). Its tokenizer is trained on the passages. The lists are the BM25 candidates of the
test queries of python-docs.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast, set_seed

from lwr.config.data.dataset import DatasetConfig
from lwr.config.data.first_stage import Bm25FirstStage
from lwr.config.data.sources import PythonDocsSource
from lwr.config.model import PromptTemplate
from lwr.data.collect import collect
from lwr.data.retrieve import retrieve
from lwr.export.export import export
from lwr.formats.beir import read_corpus, read_queries
from lwr.formats.trec import read_run
from lwr.model.reranker import LayerwiseReranker

LAYERS, START = 12, 2
GROUPS, GROUP_SIZE = 4, 8
LONGEST = 1600
"""Characters of a passage; it is cut in advance, so that no contender truncates and all read the same text."""
INSTRUCTION = PromptTemplate().instruction
LAST = PromptTemplate()  # as upstream, with the instruction at the end
FIRST = PromptTemplate(prefix=f"{INSTRUCTION}\n", after=["\n", "Is it relevant?"])


QUERY = "which layer ranks a list of passages best"
WORDS = "layer exit head query passage token score rank list model data train loss step seed".split()


def random_pairs(rng: random.Random, passages: int, words: int) -> list[tuple[str, str]]:
    """Make pairs of QUERY and passages of random words."""
    return [(QUERY, " ".join(rng.choices(WORDS, k=words))) for _ in range(passages)]


def build_workload(folder: Path, queries: int = 50, candidates: int = 100) -> Path:
    """Write lists.json, batch.json and the checkpoints `last`, `first`, `upstream` and `classifier` to the folder."""
    dataset = DatasetConfig(source=PythonDocsSource(kind="python_docs"), queries={"test": queries})
    collect(dataset, folder / "collection")
    run_file = folder / "test.trec"
    retrieve(folder / "collection", run_file, "test", Bm25FirstStage(depth=candidates))
    queries_by_id, run = read_queries(folder / "collection"), read_run(run_file)
    texts = {p.doc_id: p.full_text[:LONGEST] for p in read_corpus(folder / "collection", "test")}
    lists = [(queries_by_id[query], [texts[doc] for doc, _ in ranked]) for query, ranked in run.items()]
    (folder / "lists.json").write_text(json.dumps(lists))

    tokenizer = _tokenizer([*queries_by_id.values(), *texts.values(), INSTRUCTION, "Yes No"])
    set_seed(0)
    backbone = LlamaModel(
        LlamaConfig(
            hidden_size=256,
            intermediate_size=640,
            num_hidden_layers=LAYERS,
            num_attention_heads=8,
            num_key_value_heads=8,
            vocab_size=len(tokenizer),
            max_position_embeddings=2048,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )
    heads = {k: torch.randn(256) * 0.02 for k in range(START, LAYERS + 1)}
    for name, template in (("last", LAST), ("first", FIRST)):
        reranker = LayerwiseReranker(
            backbone,
            tokenizer,
            start_layer=START,
            initial_heads=heads,
            template=template,
            query_max_len=256,
            passage_max_len=1024,
        )
        reranker.save_pretrained(folder / name)
    export(folder / "last", LAYERS, folder / "upstream", "upstream")
    export(folder / "first", LAYERS, folder / "classifier", "huggingface")

    pairs = [(query, passage) for query, passages in lists[:GROUPS] for passage in passages[:GROUP_SIZE]]
    rows = LayerwiseReranker.from_pretrained(folder / "last", device="cpu").prompt.rows(pairs)
    (folder / "batch.json").write_text(json.dumps([row.input_ids for row in rows]))
    return folder


def _tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE that never merges a line break with the next text: texts can be tokenised apart."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("\n"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8000,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )
