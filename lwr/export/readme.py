"""README.md of an exported folder: what it is, how to load it, what to hand over."""

from __future__ import annotations

from typing import Any

import yaml

from lwr.export.pair_tokenizer import PairTokenizer
from lwr.model.reranker import LayerwiseReranker

SAMPLE = ("how is a csv file read?", "read_csv(path) reads a table.")

CARD = """\
{front}

# A reranker of {layer} layers

{origin}
It is a plain sequence classifier with one label, whose logit is the relevance of a passage to a query; no code but
the library's own is needed. Scores are raw, not between 0 and 1: of one query's passages, the higher is the better.
When this was written, its scores were within {difference:.0e} of the layerwise reranker's.
{ending}
## Loading

With sentence-transformers:

```python
from sentence_transformers import CrossEncoder

model = CrossEncoder("path/to/this/folder")
model.predict([({query!r}, {passage!r})])  # {score:.4f}
```

With transformers:

```python
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained("path/to/this/folder").eval()
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
queries, passages = [{query!r}], [{passage!r}]
features = tokenizer(queries, passages, padding=True, truncation=True, return_tensors="pt")
with torch.inference_mode():
    scores = model(**features).logits[:, 0]  # {score:.4f}
```

If another program gives that pair another score in float32, it writes or reads it otherwise.

## What it reads

{reads}

{cuts}

## Serving

With vLLM:

```
vllm serve path/to/this/folder --runner pooling --dtype float32 --served-model-name reranker
curl localhost:8000/rerank -H 'Content-Type: application/json' \\
  -d '{{"model": "reranker", "query": "…", "documents": ["…", "…"], "truncate_prompt_tokens": {row}}}'
```

{tei}
These commands follow the servers' documentation; neither server was run on this folder.
"""

TEI = """\
With text-embeddings-inference:

```
docker run --gpus all -p 8080:80 -v $PWD/path/to/this/folder:/model \\
  ghcr.io/huggingface/text-embeddings-inference:cuda-1.9 --model-id /model --dtype float32 --auto-truncate
curl localhost:8080/rerank -H 'Content-Type: application/json' \\
  -d '{"query": "…", "texts": ["…", "…"], "raw_scores": true}'
```
"""

NO_TEI = {
    "modernbert": "text-embeddings-inference leaves out the biases of this head and would score wrongly without a "
    "word: use vLLM.\n"
}

UPSTREAM = """\
{front}

# A layerwise reranker, exits {start} to {layer}

{origin}
The layout is that of bge-reranker-v2-minicpm-layerwise, with MiniCPM's three scales set to 1. FlagEmbedding
brings the code.

```python
from FlagEmbedding import LayerWiseFlagLLMReranker

reranker = LayerWiseFlagLLMReranker("path/to/this/folder", use_bf16=False, cutoff_layers=[{layer}])
reranker.compute_score(
    [({query!r}, {passage!r})],
    prompt={instruction!r},
)
```

`cutoff_layers` may name any of {start} to {layer}; no deeper layer runs.
"""


def front_matter(**about: Any) -> str:
    """What the hub reads of a README.md; nothing of what is None or empty."""
    fields = {"pipeline_tag": "text-ranking", **{name: value for name, value in about.items() if value}}
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---"


def card(
    reranker: LayerwiseReranker, layer: int, pair: PairTokenizer, score: float, difference: float
) -> str:
    """Of a sequence classifier. score: our score of SAMPLE. difference: the largest between its scores and ours."""
    query, passage = pair.write(*SAMPLE)
    architecture = reranker.config.model_type
    return CARD.format(
        front=front_matter(library_name="transformers", tags=["reranker", "cross-encoder"]),
        layer=layer,
        origin=_origin(reranker, layer),
        difference=max(difference, 1e-7),
        ending=_ending(reranker),
        query=query,
        passage=passage,
        score=score,
        reads=_reads(reranker, pair),
        row=reranker.prompt.lengths.row,
        cuts=_cuts(reranker),
        tei=TEI
        if architecture in ("bert", "xlm-roberta")
        else NO_TEI.get(architecture, "text-embeddings-inference has no reranker of this architecture.\n"),
    )


def upstream_card(reranker: LayerwiseReranker, layer: int) -> str:
    """Of a checkpoint in FlagEmbedding's layout."""
    return UPSTREAM.format(
        front=front_matter(tags=["reranker", "layerwise"]),
        start=reranker.start_layer,
        layer=layer,
        origin=_origin(reranker, layer),
        query=SAMPLE[0],
        passage=SAMPLE[1],
        instruction=reranker.prompt.template.instruction,
    )


def _origin(reranker: LayerwiseReranker, layer: int) -> str:
    base = f" on top of `{reranker.base.model}`" if reranker.base else ""
    return f"Layer {layer} of {reranker.stack.num_layers} of a layerwise reranker that lwr trained{base}."


def _ending(reranker: LayerwiseReranker) -> str:
    if reranker.stack.causal:
        return ""
    lines = [
        "",
        "The reranker's head is linear. Here the score passes the stock head's curves where they are straight, made",
        "small by its bound. Half precision rounds it more than the reranker's own head does.",
    ]
    if reranker.pooling == "mean" and reranker.config.model_type != "modernbert":
        lines.append("One more block, of uniform attention, takes the mean over the tokens.")
    return "\n".join([*lines, ""])


def _reads(reranker: LayerwiseReranker, pair: PairTokenizer) -> str:
    template = reranker.prompt.template
    if template is None:
        return "A query and a passage as they are, joined by the tokenizer's pair format."
    if pair.query == "{query}":
        how = "A query and a passage as they are, neither empty; the tokenizer writes the prompt around them."
    else:
        how = (
            f"A query written as {pair.query!r} and a passage written as {pair.passage!r}; the tokenizer writes the "
            "rest of the prompt around them."
        )
    after = [piece.replace("{instruction}", template.instruction) for piece in template.after]
    pieces = [template.prefix, template.query, template.between, template.passage, *after]
    text = "".join(pieces)
    bos = "a bos token and then " if reranker.prompt.frame(None).before else ""
    return f"""{how}
The model sees {bos}this, tokenised piece by piece:

```
{text}
```"""


def _cuts(reranker: LayerwiseReranker) -> str:
    lengths, frame = reranker.prompt.lengths, reranker.prompt.frame(None)
    room = lengths.row - len(frame.before) - len(frame.between) - len(frame.after)
    lines = [
        f"Pairs above {lengths.row} tokens lose the passage's end, as in training. Training cut otherwise, and scores",
        f"differ, where a query has more than {lengths.query} tokens, or more than what is left of its passage.",
    ]
    if lengths.passage < room:
        lines.append(
            f"Beside a query of less than {room - lengths.passage} tokens it cut passages to {lengths.passage}."
        )
    return "\n".join(lines)
