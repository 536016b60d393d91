"""One exit, or one cascade, out of the grid to where people rank."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Option

from lwr import config
from lwr.commands import OutFolder, quiet
from lwr.files import BadInput

app = typer.Typer(rich_markup_mode="markdown")


@app.command()
def export(
    model: Annotated[str, Option(help="Folder that `lwr train` wrote, or an upstream layerwise checkpoint.")],
    layer: Annotated[int, Option(help="The exit that is kept.", min=1)],
    out: OutFolder,
    layout: Annotated[Literal["huggingface", "onnx", "upstream"], Option()] = "huggingface",
) -> None:
    """Write exit k for programs that know nothing of lwr.

    **huggingface**: a plain sequence classifier of k blocks, which transformers, sentence-transformers and servers load
    without code of ours. **onnx**: the same, and its graph for onnxruntime (`pip install 'lwr[onnx]'`).
    **upstream**: FlagEmbedding's layerwise checkpoint with the exits up to k.

    Example:

    ```
    lwr export --model model --layer 4 --out reranker-of-4-layers
    ```
    """
    from lwr.export import export

    quiet()
    export(model, layer, out, layout)


@app.command()
def serve(
    model: Annotated[Path, Option(help="Folder that `lwr train` wrote.", exists=True)],
    layer: Annotated[int | None, Option(help="The exit that ranks; none: the deepest.", min=1)] = None,
    cascade: Annotated[str | None, Option(help="The cascade that ranks: `2:20 4:10 6`.")] = None,
    name: Annotated[str | None, Option(help="What answers call the model; none: its folder.")] = None,
    host: Annotated[str, Option(help="Address to listen on; 0.0.0.0 is every one.")] = "127.0.0.1",
    port: Annotated[int, Option(min=0, max=65535, help="0: a free one.")] = 8000,
    api_key_env: Annotated[
        str | None, Option(help="Environment variable with the key that requests must carry.")
    ] = None,
    max_body_mib: Annotated[float, Option(help="MiB of a request.", min=0.001)] = 4,
    max_documents: Annotated[int, Option(help="Of a request.", min=1)] = 1000,
    max_characters: Annotated[int, Option(help="Of a query or a document.", min=1)] = 100_000,
    max_requests: Annotated[int, Option(help="Inside at once; more are told to come again.", min=1)] = 256,
    tokens_per_batch: Annotated[
        int | None, Option(help="In one forward pass; none: 2048 on a CPU, 16384 on a GPU.", min=1)
    ] = None,
    precision: Annotated[Literal["float32", "bfloat16"], Option(help="Of the backbone.")] = "float32",
) -> None:
    """Serve a reranker over HTTP: /v1/rerank, /v2/rerank, /rerank as Jina, Cohere and TEI have it; a page at /.

    A request may name another exit (`layer: 4`). docs/how-to/serve.md has all shapes and limits.

    Example:

    ```
    lwr serve --model results/cells/python-docs/minilm/start2/default/seed1/model \\
      --cascade '2:20 4:10 6' --port 8000 --api-key-env LWR_API_KEY
    ```
    """
    try:
        import fastapi  # noqa: F401 - said here, before the model is read
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise BadInput(f"lwr serve: the package {error.name} is missing; pip install 'lwr[serve]'") from None
    from lwr.gate import Limits
    from lwr.schedule import Schedule
    from lwr.serve import serve

    if layer is not None and cascade is not None:
        raise BadInput(f"--layer {layer} and --cascade {cascade!r}: give one of the two")
    key = os.environ.get(api_key_env) if api_key_env else None
    if api_key_env and not key:
        raise BadInput(f"--api-key-env {api_key_env}: that variable is not set; put the key into it")
    quiet()
    scoring = config.Score(tokens_per_batch=tokens_per_batch, precision=precision)
    limits = Limits(int(max_body_mib * 2**20), max_documents, max_characters, max_requests)
    depth = Schedule((), layer) if layer else Schedule.parse(cascade) if cascade else None
    serve(model, depth, name or model.resolve().name, host, port, key, limits, scoring)
