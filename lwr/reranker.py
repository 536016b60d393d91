"""LayerwiseReranker: a backbone with a relevance head at every layer from `start_layer` to the last.

Upstream: FlagEmbedding, research/llm_reranker/finetune_for_layerwise/modeling.py, class `BiEncoderModel`,
whose construction, `encode` and `forward` work here unchanged on any causal model or encoder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from lwr import __version__
from lwr.base_model import load_base_model, yes_row_of
from lwr.checkpoint import fetch, fingerprint
from lwr.config import Base, Distillation, Lora, Template
from lwr.depth import Trunk, find_trunk, run_to
from lwr.layout import Packed, Padded, Pooling
from lwr.loss import LayerwiseLoss, layerwise_loss, teachers_of
from lwr.minicpm import is_minicpm
from lwr.packing import find_positions
from lwr.prompt import Prompt


@dataclass
class RerankerOutput(ModelOutput):
    """loss: float32 [] in training mode, else None. scores: per exit float32 [batch], start_layer first."""

    loss: Tensor | None = None
    scores: list[Tensor] | None = None
    parts: LayerwiseLoss | None = None


class LayerwiseReranker(nn.Module):
    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        train_batch_size: int = 4,
        start_layer: int = 8,
        *,
        pooling: Pooling | None = None,
        shared_head: bool = False,
        initial_heads: Tensor | Mapping[int, Tensor] | None = None,
        template: Template = Template(),  # noqa: B008 - frozen
        query_max_len: int = 32,
        passage_max_len: int = 224,
        base: Base | None = None,
        distillation: Distillation = Distillation(),  # noqa: B008 - frozen
        exit_weights: Mapping[int, float] | None = None,
    ):
        """model: a Hugging Face backbone, or a causal language model, of which only the backbone is kept.
        train_batch_size: groups in a training batch, where `forward` is not told.
        pooling: what a head reads; None: the last token of a causal backbone, the mean of an encoder.
        initial_heads: [hidden] for all exits or layer -> [hidden]; None: the vocabulary head's row of `Yes`
            where `model` has one and a tokenizer is given, else random.
        template: the prompt of a causal backbone; an encoder has its tokenizer's pair format.
        query_max_len, passage_max_len: tokens (see `Prompt`).
        base: where the backbone came from; an adapter can't be saved without.

        Raises UnsupportedBackbone, and ValueError where `start_layer` is no layer of the backbone.
        """
        super().__init__()
        if isinstance(model, PeftModel):
            raise ValueError(
                "give the model without its adapter, then call add_lora: heads stay outside peft"
            )
        if initial_heads is None and tokenizer is not None and model.get_output_embeddings() is not None:
            initial_heads = yes_row_of(model, tokenizer)
        self.backbone: nn.Module = model.base_model
        self.tokenizer = tokenizer
        self.config = self.backbone.config
        self.trunk: Trunk = find_trunk(self.backbone)
        self.first_position = find_positions(self.backbone, self.trunk)  # None: rows can't be packed
        if not 1 <= start_layer <= self.trunk.depth:
            raise ValueError(f"start_layer is {start_layer}, but layers are 1..{self.trunk.depth}")
        for module in self.trunk.unused:
            module.requires_grad_(False)

        self.start_layer = start_layer
        self.exits = list(range(start_layer, self.trunk.depth + 1))
        self.train_batch_size = train_batch_size
        self.pooling: Pooling = pooling or ("last" if self.trunk.causal else "mean")
        if self.pooling == "first" and self.trunk.causal:
            raise ValueError(
                "pooling is `first`, but in a causal backbone the first token has read nothing else"
            )
        self.shared_head = shared_head
        self.heads = nn.ParameterList(self._first_weights(initial_heads))
        self.prompt = tokenizer and Prompt(
            tokenizer, template if self.trunk.causal else None, query_max_len, passage_max_len
        )
        self.base = base
        self.distillation = distillation
        self.exit_weights = [float((exit_weights or {}).get(k, 1.0)) for k in self.exits]

    def _first_weights(self, initial: Tensor | Mapping[int, Tensor] | None) -> list[Tensor]:
        """float32 [hidden] for each head."""
        hidden, device = self.config.get_text_config().hidden_size, self.backbone.device
        layers = self.exits[-1:] if self.shared_head else self.exits
        if initial is None:
            return [torch.normal(0.0, 0.02, (hidden,), device=device) for _ in layers]
        rows = dict.fromkeys(layers, initial) if isinstance(initial, Tensor) else initial
        missing = [k for k in layers if k not in rows]
        if missing:
            raise ValueError(f"no head for layers {missing}: the checkpoint has heads at {sorted(rows)}")
        return [rows[k].detach().to(device, torch.float32).clone() for k in layers]

    # --- scoring ---------------------------------------------------------------------------------------

    def encode(self, features: Mapping[str, Tensor], layers: Sequence[int] | None = None) -> list[Tensor]:
        """Scores at each of `layers` (default: every exit), each float32 [batch]; no deeper block runs.

        features: `input_ids`, `attention_mask` int64 [batch, tokens], padded on either side (an encoder with
        learnt positions, as BERT: on the right); optionally `token_type_ids`, `position_ids`, and upstream's
        `labels`, whose one entry above -100 marks the answer: then the token before it is read.
        """
        layers = self.exits if layers is None else list(layers)
        self._known(layers)
        layout, scores = self._layout(features), {}
        in_order = layout.rows.argsort()

        def look(layer: int, hidden: Tensor) -> None:
            scores[layer] = self._score(layer, layout.pool(hidden, self.trunk.norm))[in_order]

        run_to(self.backbone, self.trunk, layers, look, layout.dim, **layout.inputs)
        return [scores[k] for k in layers]

    def cascade(self, features: Mapping[str, Tensor], keep: Mapping[int, int], last: int) -> Tensor:
        """Scores float32 [exits used, batch] of one forward pass that lets rows go; NaN for those that had left.

        features: the candidates of one query, as `encode` takes them. keep: layer -> how many go on from there, the
        best by their scores (of equals the first in the batch). last: the layer where who is left is scored.
        """
        layers = [*sorted(keep), last]
        self._known(layers)
        layout, batch = self._layout(features), len(features["input_ids"])
        scores = torch.full((len(layers), batch), torch.nan, device=features["input_ids"].device)

        def look(layer: int, hidden: Tensor) -> Tensor | None:
            here = self._score(layer, layout.pool(hidden, self.trunk.norm))
            scores[layers.index(layer), layout.rows] = here
            if layer == last:
                return None
            in_order = layout.rows.argsort()
            best = here[in_order].argsort(descending=True, stable=True)[: keep[layer]]
            return layout.keep(in_order[best].sort().values)

        run_to(self.backbone, self.trunk, layers, look, layout.dim, **layout.inputs)
        return scores

    def _known(self, layers: Sequence[int]) -> None:
        unknown = [k for k in layers if k not in self.exits]
        if unknown:
            raise ValueError(f"layers {unknown} have no head; exits are {self.exits[0]}..{self.exits[-1]}")

    @property
    def may_share(self) -> bool:
        """Whether what all rows of a batch start with is computed once, where that pays."""
        return self.first_position is not None and self.trunk.causal and self.pooling == "last"

    def _layout(self, features: Mapping[str, Tensor]) -> Padded | Packed:
        if self.first_position is None:
            return Padded(features, self.trunk.causal, self.pooling)
        return Packed(features, self.pooling, self.first_position, self.may_share)

    def head(self, layer: int) -> Tensor:
        """float32 [hidden]."""
        return self.heads[0 if self.shared_head else layer - self.start_layer]

    def _score(self, layer: int, state: Tensor) -> Tensor:
        """state [rows, hidden] -> float32 [rows], of each row whatever stands beside it in the batch.

        A matrix-vector product would round by a row's place, and equal passages would not score alike. bfloat16
        scores tie, and ties decide rankings.
        """
        with torch.autocast(state.device.type, enabled=False):
            return (state.float() * self.head(layer).float()).sum(dim=-1)

    # --- training --------------------------------------------------------------------------------------

    def forward(
        self,
        pair: Mapping[str, Tensor],
        groups: int | None = None,
        teacher_scores: Tensor | None = None,
    ) -> RerankerOutput:
        """pair: features of `groups` x group size rows, group by group, the positive first.

        teacher_scores: float32 [groups, group size] of an external teacher.
        """
        scores = self.encode(pair)
        if not self.training:
            return RerankerOutput(scores=scores)
        groups = groups or self.train_batch_size
        if len(scores[0]) % groups:
            raise ValueError(f"{len(scores[0])} rows do not make {groups} groups; pass groups=")
        grouped = torch.stack(scores).view(len(scores), groups, -1)
        teachers = teachers_of(self.exits, self.distillation)
        external = teacher_scores if self.distillation.external else None
        loss = layerwise_loss(grouped, teachers, self.distillation.temperature, self.exit_weights, external)
        return RerankerOutput(loss.total, scores, loss)

    def add_lora(self, lora: Lora) -> None:
        """Freeze the backbone and train low-rank adapters in its blocks; the heads stay outside."""
        targets = lora.targets
        if targets == "all-linear":
            inside = set(self.trunk.blocks.modules())
            targets = [
                name for name, m in self.backbone.named_modules() if isinstance(m, nn.Linear) and m in inside
            ]
        self.backbone = get_peft_model(
            self.backbone,
            LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets),
        )

    def merge(self) -> Self:
        """Fold the adapters into the backbone: what is saved then needs no base model."""
        if isinstance(self.backbone, PeftModel):
            self.backbone = self.backbone.merge_and_unload()
        return self

    # --- on disk ---------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Weights or adapter, heads, tokenizer, and lwr.json: all that `from_pretrained` needs but the base
        model that an adapter names."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        adapter = isinstance(self.backbone, PeftModel)
        if adapter and self.base is None:
            raise ValueError("an adapter must name its base model: construct with base=, or merge() first")
        self.backbone.save_pretrained(folder)
        self.config.save_pretrained(folder)  # an adapter alone would not write it
        layers = self.exits[-1:] if self.shared_head else self.exits
        names = ["shared"] if self.shared_head else [f"layer_{k}" for k in layers]
        save_file(
            {name: head.detach().cpu().contiguous() for name, head in zip(names, self.heads, strict=True)},
            folder / "heads.safetensors",
        )
        self.tokenizer.save_pretrained(folder)
        about = {
            "lwr": __version__,
            "base": self.base and self.base.identity(),
            "adapter": adapter,
            "base_fingerprint": fingerprint(fetch(self.base.model, self.base.revision)) if adapter else None,
            "depth": self.trunk.depth,
            "start_layer": self.start_layer,
            "shared_head": self.shared_head,
            "pooling": self.pooling,
            "template": self.prompt.template and self.prompt.template.model_dump(),
            "query_max_len": self.prompt.query_max_len,
            "passage_max_len": self.prompt.passage_max_len,
        }
        (folder / "lwr.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        revision: str | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        attention: str = "sdpa",
    ) -> Self:
        """A saved reranker, or an upstream layerwise checkpoint, in evaluation mode.

        device: None takes the GPU where there is one.
        Raises ValueError where a part is missing, or an adapter meets another base than it was trained on.
        """
        folder = fetch(str(model), revision)
        if not (folder / "lwr.json").is_file():
            reranker = cls._from_upstream(str(model), revision, dtype, attention)
        else:
            reranker = cls._from_saved(folder, dtype, attention)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return reranker.to(device).eval()

    @classmethod
    def _from_saved(cls, folder: Path, dtype: torch.dtype, attention: str) -> Self:
        about = json.loads((folder / "lwr.json").read_text(encoding="utf-8"))
        base = Base(**about["base"]) if about["base"] else None
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        heads = _read_heads(folder, about)
        if about["adapter"]:
            _part(folder, "adapter_model.safetensors")
            _same_base(folder, base, about["base_fingerprint"])
            backbone = load_base_model(base.model_copy(update={"attention": attention})).backbone
        else:
            backbone = AutoModel.from_pretrained(
                folder,
                dtype=dtype,
                attn_implementation=attention,
                use_safetensors=True,
                trust_remote_code=False,
            )
        template = Template(**(about["template"] or {}))
        reranker = cls(
            backbone,
            tokenizer,
            start_layer=about["start_layer"],
            pooling=about["pooling"],
            shared_head=about["shared_head"],
            initial_heads=heads,
            template=template,
            query_max_len=about["query_max_len"],
            passage_max_len=about["passage_max_len"],
            base=base,
        )
        if about["adapter"]:
            reranker.backbone = PeftModel.from_pretrained(backbone, folder).to(dtype)
        return reranker

    @classmethod
    def _from_upstream(cls, model: str, revision: str | None, dtype: torch.dtype, attention: str) -> Self:
        if not is_minicpm(fetch(model, revision)):
            raise ValueError(f"{model}: no lwr.json; give a folder that save_pretrained wrote")
        base = Base(model=model, revision=revision, attention=attention)
        loaded = load_base_model(base)
        if not loaded.heads:
            raise ValueError(f"{model}: a raw language model without relevance heads; train it first")
        shared = all(torch.equal(head, loaded.heads[max(loaded.heads)]) for head in loaded.heads.values())
        return cls(
            loaded.backbone.to(dtype),
            loaded.tokenizer,
            start_layer=min(loaded.heads),
            shared_head=shared,
            initial_heads=loaded.heads,
            base=base,
        )


BiEncoderModel = LayerwiseReranker  # upstream's name


def _part(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise ValueError(
            f"{folder}: {name} is missing; without it a reranker scores nothing (pickles are not read)"
        )
    return folder / name


def _read_heads(folder: Path, about: dict[str, Any]) -> dict[int, Tensor]:
    file = _part(folder, "heads.safetensors")
    tensors = load_file(file)
    exits = range(about["start_layer"], about["depth"] + 1)
    names = {k: "shared" if about["shared_head"] else f"layer_{k}" for k in exits}
    missing = sorted(set(names.values()) - set(tensors))
    if missing:
        raise ValueError(f"{file}: no head named {missing}; it holds {sorted(tensors)}")
    return {k: tensors[name] for k, name in names.items()}


def _same_base(folder: Path, base: Base, expected: str) -> None:
    if fingerprint(fetch(base.model, base.revision)) != expected:
        raise ValueError(
            f"{folder} is an adapter for {base.model} (revision {base.revision}), but what is there now has other "
            "weights than it was trained on; put that checkpoint back"
        )
