"""README.md of an exported folder: what it holds, how to load it, what to pass to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lwr.export.pair_tokenizer import PairTokenizer
from lwr.model.reranker import LayerwiseReranker

TEMPLATES = Path(__file__).parent / "templates"
SAMPLE_QUERY = "how is a csv file read?"
SAMPLE_PASSAGE = "read_csv(path) reads a table."


def render(template: str, metadata: ModelCardData, **fields: Any) -> str:
    """Render a template of this package to Markdown.

    Args:
        template: File name in `templates/`, without its suffix.
        metadata: Front matter, which the hub reads; its values are variables of the template, too.
        fields: Variables of the template; jinja2.UndefinedError is raised if one is missing.
    """
    environment = Environment(loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined)
    values = metadata.to_dict() | fields | {"card_data": metadata.to_yaml()}
    card = environment.get_template(f"{template}.md.j2").render(values)
    return f"{card}\n"


def exit_readme(
    template: str,
    reranker: LayerwiseReranker,
    layer: int,
    pair: PairTokenizer,
    sample: tuple[str, str],
    score: float,
    difference: float,
    library: str = "transformers",
    **fields: Any,
) -> str:
    """Describe a folder with one exit.

    Args:
        template: As for `render`.
        reranker: The reranker that was exported.
        layer: The exit that was exported.
        pair: The tokenizer that was written.
        sample: A query and a passage that fit into a row.
        score: The reranker's score of `sample`.
        difference: Largest difference between its scores and those of the folder.
        library: The library that loads the folder, as the hub names it.
        fields: Variables of the template beside those of all folders with one exit.
    """
    query, passage = pair.write(*sample)
    prompt, frame = reranker.prompt, reranker.prompt.frame(None)
    return render(
        template,
        ModelCardData(pipeline_tag="text-ranking", library_name=library, tags=["reranker", "cross-encoder"]),
        layer=layer,
        depth=reranker.stack.num_layers,
        base=_base_model(reranker),
        architecture=reranker.config.model_type,
        causal=reranker.stack.causal,
        score=score,
        difference=max(difference, 1e-7),
        query=repr(query),
        passage=repr(passage),
        texts_as_they_are=pair.query == "{query}",
        query_form=repr(pair.query),
        passage_form=repr(pair.passage),
        prompt=_written_prompt(reranker),
        starts_with_bos=bool(frame.before),
        lengths=prompt.lengths,
        free_tokens=prompt.lengths.row - len(frame.before) - len(frame.between) - len(frame.after),
        **fields,
    )


def upstream_readme(reranker: LayerwiseReranker, layer: int, instruction: str) -> str:
    """Describe a checkpoint in FlagEmbedding's layout with the exits up to `layer`."""
    return render(
        "upstream",
        ModelCardData(pipeline_tag="text-ranking", tags=["reranker", "layerwise"]),
        layer=layer,
        depth=reranker.stack.num_layers,
        base=_base_model(reranker),
        start_layer=reranker.start_layer,
        query=repr(SAMPLE_QUERY),
        passage=repr(SAMPLE_PASSAGE),
        instruction=repr(instruction),
    )


def _base_model(reranker: LayerwiseReranker) -> str | None:
    return reranker.base.model if reranker.base else None


def _written_prompt(reranker: LayerwiseReranker) -> str | None:
    """Return the prompt with its placeholders; None for a tokenizer's pair format."""
    template = reranker.prompt.template
    if template is None:
        return None
    prefix, *after = template.written(template.instruction)
    return "".join([prefix, template.query, template.between, template.passage, *after])
