"""Commands that use a trained model: rerank, export, serve, card."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from lwr.cli.options import Model, OutFolder, command_with_extra, silence_transformers
from lwr.common.atomic import atomic, check_writable
from lwr.common.errors import BadInput
from lwr.config.evaluation import ScoringConfig, Windows
from lwr.config.load import read_settings
from lwr.config.section import ScoringPrecision
from lwr.export.export import GraphPrecision, Layout, Optimization
from lwr.model.cascade_schedule import Schedule, stage_weights

app = typer.Typer(rich_markup_mode="markdown")

Layer = Annotated[int | None, Option(help="Layer whose exit ranks; default: the deepest.", min=1)]
Cascade = Annotated[
    str | None,
    Option(
        help="Cascade that ranks, such as `2:20 4:10 6`; `0:50 3:10 6` starts with the first stage, `2/2:20 6` makes "
        "one of each two passage tokens after layer 2."
    ),
]
Compress = Annotated[
    str | None,
    Option(help="Token compression, such as `2/2`: after layer 2, each two passage tokens become one."),
]
TokensPerBatch = Annotated[
    int | None,
    Option(help="Tokens in one forward pass; default: 2048 on a CPU, 16384 on a GPU.", min=1),
]
Fused = Annotated[
    bool,
    Option(
        "--fused", help="Rank and drop by fused scores, with the first stage's scores where these are given."
    ),
]
FusionFile = Annotated[
    Path | None,
    Option(
        "--fusion",
        help="Weights that `lwr fuse` wrote; default: fusion.json in the model's folder, or else its grid's.",
        exists=True,
    ),
]
WindowsOption = Annotated[
    str | None,
    Option(
        "--windows",
        metavar="SETTINGS",
        help="Read passages that do not fit into a row in windows; the keys under `score.windows`, such as "
        "`--windows '{overlap: 32, most: 4, pool: max}'`; default: they are cut.",
    ),
]
PrecisionOption = Annotated[
    ScoringPrecision,
    Option(
        "--precision",
        help="Data type in which the blocks compute; int8, on a CPU: their linear layers, such as "
        "`--precision int8`.",
    ),
]


@app.command()
def rerank(
    model: Annotated[
        str, Option(help="Folder that `lwr train` wrote, hub id, or upstream layerwise checkpoint.")
    ],
    run: Annotated[
        Path | None, Option(help="TREC run with the candidates; needs --queries and --corpus.")
    ] = None,
    queries: Annotated[Path | None, Option(help="Queries of the run, as BEIR's JSON lines.")] = None,
    corpus: Annotated[
        Path | None, Option(help="Passages of the run, as BEIR's JSON lines; streamed.")
    ] = None,
    groups: Annotated[
        Path | None, Option(help="Instead of a run: FlagEmbedding's JSON lines with query, pos and neg.")
    ] = None,
    query: Annotated[str | None, Option(help="Instead of a run: one query.")] = None,
    passages: Annotated[
        Path | None, Option(help="Passages of --query, one per line; default or `-`: standard input.")
    ] = None,
    layer: Layer = None,
    cascade: Cascade = None,
    compress: Compress = None,
    fused: Fused = False,
    fusion: FusionFile = None,
    instruction: Annotated[
        str | None,
        Option(help="Text for the place of the instruction in the model's prompt; default: the model's own."),
    ] = None,
    top_k: Annotated[
        int | None, Option(help="Number of passages written per query; default: all.", min=1)
    ] = None,
    out: Annotated[
        Path | None,
        Option("--out", "-o", help="TREC run to write; JSON lines if it ends in .jsonl or .jsonl.gz."),
    ] = None,
    tag: Annotated[
        str | None, Option(help="Tag of the written run; default: as in the workflow, such as `layer_4`.")
    ] = None,
    windows: WindowsOption = None,
    tokens_per_batch: TokensPerBatch = None,
    precision: PrecisionOption = "float32",
    revision: Annotated[str | None, Option(help="Commit hash of a hub id.")] = None,
) -> None:
    r"""Rerank files: candidates of a TREC run, FlagEmbedding's groups, or lines of text for one query.

    With --query and without --out, the ranking is printed. Files may be gzipped. See docs/how-to/rerank.md.

    For example:

    ```
    lwr rerank --model model --queries queries.jsonl --run bm25.trec --corpus corpus.jsonl \
      --cascade '0:50 3:10 6' --fused --fusion fusion.json --out out.trec
    lwr rerank --model model --query 'read a csv file' --passages passages.txt --layer 4
    lwr rerank --model model --query 'read a csv file' --passages passages.txt \
      --instruction 'Does B define the function that A asks for? Answer Yes or No.'
    ```
    """
    from lwr.model.reranker import LayerwiseReranker
    from lwr.scoring.candidates import (
        STDIN,
        check_prompts,
        read_group_candidates,
        read_passage_candidates,
        read_run_candidates,
    )
    from lwr.scoring.rankings import check_output, print_ranking, write_rankings
    from lwr.scoring.rerank import rerank, resolve_fusion, resolve_schedule

    requested = _requested_schedule(layer, cascade)
    scoring = _scoring(tokens_per_batch, precision, windows)
    if out is not None:
        check_output(out, tag)
    elif query is None:
        raise BadInput("no --out: only the ranking of a --query is printed; name a file")
    elif tag is not None:
        raise BadInput(f"--tag {tag} without --out: no run is written; give both")
    silence_transformers()
    run_files = _check_inputs(query, passages, groups, run, queries, corpus)
    if instruction is not None and groups is not None:
        raise BadInput("--instruction beside --groups: each line has its own; write it as the field `prompt`")
    schedule = resolve_schedule(model, requested, revision)
    if compress is not None:
        schedule = schedule.compress(compress)
    if schedule.from_first_stage is not None and run is None:
        raise BadInput(
            f"--cascade {str(schedule)!r}: its stage 0 needs scores of a first stage; give a --run"
        )
    weights = resolve_fusion(model, fused, fusion, revision)
    if weights is not None:
        stage_weights(weights, schedule, has_first_stage=True)
    if query is not None:
        candidates = read_passage_candidates(query, passages or STDIN)
    elif groups is not None:
        candidates = read_group_candidates(groups)
    else:
        candidates = read_run_candidates(*run_files)
    if out is not None:
        check_writable(out)
    reranker = LayerwiseReranker.from_pretrained(model, revision=revision, precision=precision)
    reranker.fusion = weights
    if groups is not None:
        check_prompts(groups, candidates, reranker.prompt)
    elif instruction is not None:
        prompts = reranker.prompt.with_instruction(instruction)
        candidates = [replace(of_query, prompts=prompts) for of_query in candidates]
    ranked = rerank(reranker, candidates, schedule, scoring, top_k, fused)
    if out is None:
        print_ranking(ranked[0])
    else:
        write_rankings(out, ranked, schedule, tag, fused)


def _check_inputs(
    query: str | None,
    passages: Path | None,
    groups: Path | None,
    run: Path | None,
    queries: Path | None,
    corpus: Path | None,
) -> list[Path]:
    """Return run, queries and corpus if these are the input; raise BadInput unless exactly one kind is given."""
    run_options = {"--run": run, "--queries": queries, "--corpus": corpus}
    given = {name: file for name, file in run_options.items() if file is not None}
    if [query is not None, groups is not None, len(given) > 0].count(True) != 1:
        raise BadInput("give one of: --run with --queries and --corpus; --groups; --query")
    if passages is not None and query is None:
        raise BadInput(f"--passages {passages} without --query: give both")
    if given and len(given) < len(run_options):
        missing = ", ".join(name for name in run_options if name not in given)
        raise BadInput(f"{', '.join(given)} without {missing}: give all three")
    return list(given.values())


def _scoring(tokens_per_batch: int | None, precision: ScoringPrecision, windows: str | None) -> ScoringConfig:
    """Return how passages are scored. Raises BadInput if `windows` are not such settings."""
    read = None if windows is None else read_settings(windows, Windows)
    return ScoringConfig(tokens_per_batch=tokens_per_batch, precision=precision, windows=read)


def _requested_schedule(layer: int | None, cascade: str | None) -> Schedule | None:
    """Return the schedule of `--layer` or `--cascade`; None: the deepest exit alone."""
    if layer is not None and cascade is not None:
        raise BadInput(f"--layer {layer} and --cascade {cascade!r}: give one of the two")
    if layer is not None:
        return Schedule.single(layer)
    return None if cascade is None else Schedule.parse(cascade)


@command_with_extra(app, "report")
def export(
    model: Annotated[str, Option(help="Folder that `lwr train` wrote, or upstream layerwise checkpoint.")],
    layer: Annotated[int, Option(help="Layer whose exit is exported.", min=1)],
    out: OutFolder,
    layout: Annotated[Layout, Option()] = "huggingface",
    precision: Annotated[
        GraphPrecision,
        Option(help="Of the linear layers, in layout onnx or openvino, such as `--precision int8`."),
    ] = "float32",
    optimize: Annotated[
        Optimization | None,
        Option(
            help="Fuse operations, in layout onnx, such as `--optimize O2`; O3 also computes GELU approximately."
        ),
    ] = None,
) -> None:
    """Export one exit for programs without lwr.

    **huggingface**: a sequence classifier with the first LAYER blocks, which transformers, sentence-transformers and
    servers load without our code. **sentence-transformers**: a CrossEncoder in modules, for its version 5.4 or later
    (`pip install 'lwr[sentence-transformers]'`), also where the first layout cannot express the model.
    **onnx**, **openvino**: a graph for onnxruntime or OpenVINO (`pip install 'lwr[onnx]'`, `'lwr[openvino]'`).
    **upstream**: FlagEmbedding's layerwise checkpoint with all exits up to LAYER.

    For example:

    ```
    lwr export --model model --layer 4 --out reranker-of-4-layers
    lwr export --model model --layer 4 --out int8-reranker --layout onnx --precision int8
    ```
    """
    from lwr.export.export import export

    silence_transformers()
    export(model, layer, out, layout, precision, optimize)


@command_with_extra(app, "serve")
def serve(
    model: Model,
    layer: Layer = None,
    cascade: Cascade = None,
    fused: Fused = False,
    fusion: FusionFile = None,
    name: Annotated[str | None, Option(help="Name of the model in answers; default: its folder's.")] = None,
    host: Annotated[str, Option(help="Address to listen on; 0.0.0.0: all addresses.")] = "127.0.0.1",
    port: Annotated[int, Option(min=0, max=65535, help="Port to listen on; 0: a free one.")] = 8000,
    api_key_env: Annotated[
        str | None, Option(help="Environment variable with the key that requests must carry.")
    ] = None,
    budget_ms: Annotated[
        float | None,
        Option(
            help="Instead of a layer: milliseconds within which requests are answered, waiting included; the deepest "
            "exit that is reached in time ranks.",
            min=0.001,
        ),
    ] = None,
    max_body_mib: Annotated[float, Option(help="Maximum size of a request in MiB.", min=0.001)] = 4,
    max_documents: Annotated[int, Option(help="Maximum number of documents of a request.", min=1)] = 1000,
    max_characters: Annotated[
        int, Option(help="Maximum number of characters of a query or a document.", min=1)
    ] = 100_000,
    max_requests: Annotated[
        int, Option(help="Maximum number of requests at a time; others are asked to retry.", min=1)
    ] = 256,
    windows: WindowsOption = None,
    tokens_per_batch: TokensPerBatch = None,
    precision: PrecisionOption = "float32",
) -> None:
    r"""Serve a reranker over HTTP: /v1/rerank, /v2/rerank and /rerank like Jina, Cohere and TEI; a page at /.

    A request may select another exit (`layer: 4`) or a budget of time (`budget_ms: 50`). docs/how-to/serve.md describes
    all requests and limits.

    For example:

    ```
    lwr serve --model results/cells/python-docs/minilm/start2/default/seed1/model \
      --cascade '2:20 4:10 6' --fused --fusion fusion.json --port 8000 --api-key-env LWR_API_KEY
    lwr serve --model results/cells/python-docs/minilm/start2/default/seed1/model --budget-ms 200
    ```
    """
    from lwr.scoring.rerank import resolve_fusion
    from lwr.serving.admission import Limits
    from lwr.serving.serve import serve

    requested = _requested_schedule(layer, cascade)
    if budget_ms == math.inf:
        raise BadInput(f"--budget-ms {budget_ms}: give a number of milliseconds, such as 200")
    if requested is not None and budget_ms is not None:
        raise BadInput(f"--budget-ms {budget_ms:g} chooses the exit: leave out --layer and --cascade")
    key = os.environ.get(api_key_env) if api_key_env else None
    if api_key_env and not key:
        raise BadInput(f"--api-key-env {api_key_env}: that variable is not set; put the key into it")
    silence_transformers()
    scoring = _scoring(tokens_per_batch, precision, windows)
    limits = Limits(int(max_body_mib * 2**20), max_documents, max_characters, max_requests)
    weights = resolve_fusion(str(model), fused, fusion)
    model_name = name or model.resolve().name
    serve(model, requested, weights, model_name, host, port, key, limits, scoring, budget_ms)


@command_with_extra(app, "report")
def card(
    model: Annotated[Path, Option(help="Folder that `lwr train` wrote.", exists=True, file_okay=False)],
    results: Annotated[
        Path | None, Option(help="Results of the model's grid; default: the folder around the model.")
    ] = None,
    out: Annotated[
        Path | None, Option("--out", "-o", help="README.md to write; default: print, or only upload.")
    ] = None,
    name: Annotated[
        str | None,
        Option(help="Name that users load the model by; default: that of --push-to, or a placeholder."),
    ] = None,
    license: Annotated[str, Option(help="License in the hub's spelling, such as apache-2.0.")] = "unknown",
    push_to: Annotated[
        str | None, Option(metavar="OWNER/NAME", help="Upload the model and its card to this hub repository.")
    ] = None,
    private: Annotated[bool, Option("--private", help="Create the repository as a private one.")] = False,
    revision: Annotated[
        str | None, Option(help="Branch to upload to; it is created if it does not exist.")
    ] = None,
) -> None:
    r"""Write a model card for the Hugging Face hub: quality and cost per layer, recommendation, usage.

    Uploading uses the token of `hf auth login` or of the variable HF_TOKEN.

    For example:

    ```
    lwr card --model results/cells/python-docs/minilm/start2/default/seed1/model --license mit \
      --out README.md --push-to me/my-reranker --private
    ```
    """
    from lwr.export.card import card, find_fusion
    from lwr.export.hub_upload import check_repo_id, push

    if push_to is not None:
        check_repo_id(push_to)
    silence_transformers()
    text = card(model, results, name or push_to or "path/to/this/folder", license)
    if out is not None:
        with atomic(out) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    if push_to is not None:
        from lwr.model.reranker import LayerwiseReranker
        from lwr.model.storage import find_calibration

        reranker = LayerwiseReranker.from_pretrained(model)
        reranker.fusion = find_fusion(model, results)
        reranker.calibration = find_calibration(str(model), results=results)
        typer.echo(push(reranker, push_to, text, private=private or None, revision=revision))
    elif out is None:
        typer.echo(text, nl=False)
