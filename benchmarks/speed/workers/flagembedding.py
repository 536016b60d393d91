"""FlagEmbedding 1.4.2: its layerwise trainer's model and loss, or its released reranker's compute_score."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from FlagEmbedding import LayerWiseFlagLLMReranker
from FlagEmbedding.finetune.reranker.decoder_only.layerwise.modeling import CrossDecoderModel
from FlagEmbedding.finetune.reranker.decoder_only.layerwise.modeling_minicpm_reranker import (
    LayerWiseMiniCPMForCausalLM,
)
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer
from worker import serve, training

folder, what, *options = sys.argv[1:]
folder = Path(folder)


class AllExits(CrossDecoderModel):
    """FlagEmbedding's model with the logits of every exit, as its research trainer asks for them.

    The package's trainer asks for no exit and gets the logits of the deepest alone.
    """

    def encode(self, features):
        exits = range(self.config.start_layer, self.config.num_hidden_layers + 1)
        output = self.model(**features, output_hidden_states=True, cutoff_layers=list(exits))
        return [logits[:, -1].contiguous() for logits in output.logits]


if what == "train":
    groups, lora = int(options[0]), options[1] == "lora"
    torch.manual_seed(0)
    model = LayerWiseMiniCPMForCausalLM.from_pretrained(folder / "upstream", attn_implementation="sdpa")
    model.config.use_cache = False
    if lora:
        names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        model = get_peft_model(
            model, LoraConfig(r=32, lora_alpha=64, target_modules=names, modules_to_save=["linear_head"])
        )
    reranker = AllExits(model, AutoTokenizer.from_pretrained(folder / "upstream"), groups).train()
    serve(training(folder, lambda batch: reranker(batch).loss, reranker.parameters()))
else:
    reranker = LayerWiseFlagLLMReranker(str(folder / "upstream"), use_fp16=False, devices=["cpu"])
    lists = json.loads((folder / "lists.json").read_text())

    def score(lists_from: int, lists_to: int, layers: list[int]):
        pairs = [(query, passage) for query, passages in lists[lists_from:lists_to] for passage in passages]
        return reranker.compute_score(pairs, cutoff_layers=layers, max_length=1024)

    serve(score)
