"""Exit k for programs that know nothing of this one: a stock sequence classifier, or upstream's layerwise checkpoint.

A sequence classifier of Hugging Face reads the last token's final-normed state with a bias-free linear layer: that is
an exit of a decoder, cut to its first k blocks. An encoder's takes `lwr.export.encoder_head`. What was written is
loaded and scored before it is handed over.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
)

from lwr.common.atomic import atomic
from lwr.common.json_lines import write_json
from lwr.config.model import PromptTemplate
from lwr.export.encoder_head import close
from lwr.export.pair_tokenizer import PROBES, PairTokenizer, write_pair_tokenizer, write_plain_tokenizer
from lwr.export.readme import SAMPLE, card, upstream_card
from lwr.model.batching import pad
from lwr.model.lora import merge_lora
from lwr.model.minicpm import SAME_IN_LLAMA
from lwr.model.reranker import LayerwiseReranker

Layout = Literal["huggingface", "onnx", "upstream"]

TOLERANCE = 1e-4  # between our score and a loader's, for scores of 1; more for larger ones
CHECKED = [SAMPLE, *itertools.product(PROBES[:3], PROBES[:4])]


def export(model: str | Path, layer: int, out: Path, layout: Layout = "huggingface") -> None:
    """Write exit `layer` of a saved reranker (or of an upstream checkpoint) to the folder `out`, adapters merged.

    huggingface: one sequence classifier of `layer` blocks with one label, whose logit is the score.
    onnx: the same, and its graph in onnx/model.onnx.
    upstream: FlagEmbedding's layerwise layout with the first `layer` blocks and all their exits.

    Raises ValueError where the layer has no head, or where the backbone, its pooling or its prompt can't be written
    in that layout; nothing is left behind then. So where packages of the extra `onnx` are missing.
    """
    if layout == "onnx" and find_spec("onnxscript") is None:
        raise ValueError("layout onnx needs packages that are not installed; pip install 'lwr[onnx]'")
    # eager: of all kinds of attention the one that every backbone has
    reranker = LayerwiseReranker.from_pretrained(model, device="cpu", attention="eager")
    merge_lora(reranker)
    if layer not in reranker.exits:
        raise ValueError(
            f"{model}: layer {layer} has no head; exits are {reranker.exits[0]}..{reranker.exits[-1]}"
        )
    with atomic(out) as draft:
        draft.mkdir()
        if layout == "upstream":
            _write_upstream(reranker, layer, draft)
        else:
            _write_huggingface(reranker, layer, draft)
        if layout == "onnx":
            _write_onnx(draft)


# --- a stock sequence classifier -----------------------------------------------------------------------


def _write_huggingface(reranker: LayerwiseReranker, layer: int, folder: Path) -> None:
    model = classifier(reranker, layer)
    model.save_pretrained(folder)
    pair = write_pair_tokenizer(reranker.prompt, folder)
    _amend_config(folder / "config.json", pair.tokenizer.pad_token_id)
    # where text-embeddings-inference looks for the length to cut to
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": reranker.prompt.lengths.row})
    score, difference = _score_and_compare(reranker, layer, folder, pair)
    (folder / "README.md").write_text(card(reranker, layer, pair, score, difference), encoding="utf-8")


@torch.no_grad()
def classifier(reranker: LayerwiseReranker, layer: int) -> PreTrainedModel:
    """Exit `layer` as the stock `*ForSequenceClassification` of its architecture; weights are shared where they stay.

    The reranker carries no adapter (`merge` it). Raises ValueError where transformers has no such class for the
    backbone, or where it pools otherwise.
    """
    causal = reranker.stack.causal
    if causal and reranker.pooling != "last":
        raise ValueError(
            f"pooling is `{reranker.pooling}`, but the sequence classifiers of decoders read the last token; "
            "only a reranker trained with `pooling: last` can be exported"
        )
    config = _first_blocks(reranker.config, layer)
    config.num_labels = 1
    config.problem_type = "regression"  # pipelines hand out the score as it is
    config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
    prefix = _empty(config).base_model_prefix
    state = {f"{prefix}.{name}": tensor for name, tensor in _tensors(reranker, layer).items()}
    head = reranker.head(layer).detach()
    if causal:
        state["score.weight"] = head[None].to(reranker.backbone.dtype)
    else:
        close(config, state, head, reranker.pooling)
    model = _empty(config)
    model.load_state_dict(state, assign=True)
    return model.eval()


def _first_blocks(config: PretrainedConfig, layer: int) -> PretrainedConfig:
    config = copy.deepcopy(config.get_text_config())
    config.num_hidden_layers = layer
    if getattr(config, "layer_types", None):  # kinds of attention, one per block
        config.layer_types = config.layer_types[:layer]
    return config


def _empty(config: PretrainedConfig) -> PreTrainedModel:
    """A model without weights, in no memory."""
    try:
        with torch.device("meta"):
            return AutoModelForSequenceClassification.from_config(config)
    except ValueError:
        raise ValueError(
            f"{config.model_type}: transformers has no sequence classifier of this architecture, so no other program "
            "could load the export; serve it with lwr"
        ) from None


def _tensors(reranker: LayerwiseReranker, layer: int) -> dict[str, Tensor]:
    """The backbone's, but for the blocks above `layer` and a pooler, which no head reads."""
    modules = reranker.backbone.named_modules()
    (blocks,) = [f"{name}." for name, module in modules if module is reranker.stack.blocks]

    def kept(name: str) -> bool:
        if name.startswith("pooler."):
            return False
        return not name.startswith(blocks) or int(name.removeprefix(blocks).split(".")[0]) < layer

    return {name: tensor for name, tensor in reranker.backbone.state_dict().items() if kept(name)}


def _amend_config(file: Path, pad_token_id: int) -> None:
    """Say which token pads, and the rotary base where transformers 4, and servers built on it, look for that."""
    config = json.loads(file.read_text(encoding="utf-8"))
    config["pad_token_id"] = pad_token_id
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:  # else one per kind of attention, which those never read
        config["rope_theta"] = rope["rope_theta"]
    if rope.get("rope_type", "default") != "default":
        config["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    write_json(file, config)


@torch.inference_mode()
def _score_and_compare(
    reranker: LayerwiseReranker, layer: int, folder: Path, pair: PairTokenizer
) -> tuple[float, float]:
    """Our score of SAMPLE, and how far the scores of CHECKED by what stands in `folder` are from ours at most.

    Raises ValueError where that is above TOLERANCE.
    """
    (ours,) = reranker.encode(pad(reranker.prompt.rows(CHECKED), reranker.tokenizer), [layer])
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=reranker.backbone.dtype, trust_remote_code=False, use_safetensors=True
    )
    queries, passages = zip(*(pair.write(*texts) for texts in CHECKED), strict=True)
    features = pair.tokenizer([*queries], [*passages], padding=True, return_tensors="pt")
    theirs = model.eval()(**features).logits[:, 0].float()
    difference = (ours - theirs).abs()
    if (difference > TOLERANCE * ours.abs().clamp(min=1)).any():
        raise ValueError(
            f"{type(model).__name__}: loaded again, its scores are up to {difference.max():.2g} off the reranker's; "
            "serve this one with lwr"
        )
    return float(ours[0]), float(difference.max())


def _write_onnx(folder: Path) -> None:
    """The classifier in `folder` as a graph in onnx/model.onnx, where sentence-transformers looks for one.

    Inputs: those of the tokenizer, int64 [batch, tokens]. Output: `logits`, float32 [batch, 1].
    """
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    features = tokenizer(*map(list, zip(*CHECKED[:2], strict=True)), padding=True, return_tensors="pt")

    class Logits(torch.nn.Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            return model(**dict(zip(features, inputs, strict=True))).logits

    sizes = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("tokens", min=2)}
    program = torch.onnx.export(
        Logits().eval(),
        tuple(features.values()),
        dynamo=True,
        verbose=False,
        input_names=list(features),
        output_names=["logits"],
        dynamic_shapes=(tuple(sizes for _ in features),),
    )
    (folder / "onnx").mkdir()
    program.save(folder / "onnx" / "model.onnx")


# --- upstream's layerwise checkpoint -------------------------------------------------------------------


def _write_upstream(reranker: LayerwiseReranker, layer: int, folder: Path) -> None:
    """MiniCPM whose three scales are 1: that is Llama. FlagEmbedding brings the code, so no code is written."""
    if reasons := list(_not_upstreams(reranker)):
        raise ValueError(f"FlagEmbedding can't read this reranker: {'; '.join(reasons)}")
    tensors = {f"model.{name}": tensor for name, tensor in _tensors(reranker, layer).items()}
    exits = [k for k in reranker.exits if k <= layer]
    if reranker.shared_head:
        heads = {"lm_head.linear_head.weight": reranker.head(layer)}
    else:
        heads = {f"lm_head.{i}.linear_head.weight": reranker.head(k) for i, k in enumerate(exits)}
    tensors |= {name: head.detach()[None].to(reranker.backbone.dtype) for name, head in heads.items()}
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    tokenizer = write_plain_tokenizer(reranker.prompt, folder)
    config = _minicpm_config(reranker, layer) | {"pad_token_id": tokenizer.pad_token_id}
    write_json(folder / "config.json", config)
    (folder / "README.md").write_text(upstream_card(reranker, layer), encoding="utf-8")


def _not_upstreams(reranker: LayerwiseReranker):
    """Why upstream's class or its prompt would give other scores, a reason at a time."""
    config, tokenizer, template = reranker.config, reranker.tokenizer, reranker.prompt.template
    if config.model_type != "llama":
        yield f"its layerwise class is MiniCPM, which holds a llama but no {config.model_type}"
        return
    if config.attention_bias or config.mlp_bias:
        yield "MiniCPM's linear layers have no biases, these have"
    if config.head_dim * config.num_attention_heads != config.hidden_size:
        yield f"MiniCPM's heads share the hidden size, but {config.num_attention_heads} x {config.head_dim} is not it"
    if config.rope_parameters["rope_type"] not in ("default", "linear"):
        yield f"MiniCPM has no rotary embedding of type {config.rope_parameters['rope_type']}"
    if reranker.pooling != "last":
        yield f"it reads the last token, this reranker the {reranker.pooling}"
    if template != PromptTemplate(instruction=template.instruction):
        yield "it writes `A: query`, `B: passage` and an instruction, this reranker was trained with another template"
    if tokenizer.bos_token is None or tokenizer.bos_token == tokenizer.pad_token:
        yield "it starts each row with a bos token, this reranker's rows start without"


def _minicpm_config(reranker: LayerwiseReranker, layer: int) -> dict[str, Any]:
    config = reranker.config.to_dict()
    rope = config["rope_parameters"]
    linear = {"type": "linear", "factor": rope.get("factor")}
    return {key: config.get(key) for key in SAME_IN_LLAMA} | {
        "architectures": ["LayerWiseMiniCPMForCausalLM"],
        "model_type": "minicpm",
        "num_hidden_layers": layer,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": linear if rope["rope_type"] == "linear" else None,
        "scale_emb": 1,
        "scale_depth": math.sqrt(layer),  # which the class divides by the same
        "dim_model_base": config["hidden_size"],
        "start_layer": reranker.start_layer,
        "head_multi": not reranker.shared_head,
        "head_type": "simple",
        "pretraining_tp": 1,
        "tie_word_embeddings": False,
        "use_cache": False,
        "torch_dtype": str(reranker.backbone.dtype).removeprefix("torch."),
    }
