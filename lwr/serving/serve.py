"""The step `serve`: an HTTP server for one reranker."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import uvicorn

from lwr.common.exits import describe_layers
from lwr.config.evaluation import ScoringConfig
from lwr.formats.fusion import Fusion
from lwr.model.cascade_schedule import Schedule
from lwr.model.reranker import LayerwiseReranker
from lwr.model.storage import find_calibration
from lwr.serving.admission import Limits
from lwr.serving.application import build_application

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(
    model: Path,
    schedule: Schedule | None,
    fusion: Fusion | None,
    name: str,
    host: str,
    port: int,
    key: str | None,
    limits: Limits,
    scoring: ScoringConfig,
    budget_ms: float | None = None,
) -> None:
    """Serve a reranker until a signal ends the process, after the requests that were admitted are answered.

    Args:
        model: Folder that `lwr train` wrote.
        schedule: The exit or the cascade that ranks where a request names no layer; None: the deepest exit.
        fusion: The weights of fused scores by which the server ranks; None: exits rank by their own scores.
        name: The model's name in answers.
        host: The address to listen on.
        port: The port to listen on; 0: a free one.
        key: The API key that requests must send; None: no key is required.
        limits: The limits that a request may not exceed.
        scoring: Precision, tokens per batch, and windows.
        budget_ms: Milliseconds within which requests that name neither a layer nor a budget are answered, waiting
            included, by the deepest exit that is reached in time; None: `schedule` ranks.

    Raises:
        ValueError: The model cannot be read, or has no head at a layer of `schedule`; or windows overlap by as many
            tokens as they have.
    """
    reranker = LayerwiseReranker.from_pretrained(model, precision=scoring.precision)
    if scoring.windows is not None:
        reranker.prompt.check_windows(scoring.windows)
    reranker.fusion = fusion
    reranker.calibration = find_calibration(str(model))
    schedule = schedule or Schedule.single(reranker.exits[-1])
    app = build_application(reranker, name, schedule, limits, key, scoring, fusion is not None, budget_ms)
    ranks_by = str(schedule) if budget_ms is None else f"the deepest exit within {budget_ms:g} ms"
    ranks_by += ", fused" if fusion else ""
    print(
        f"lwr serve: {name}, exits {describe_layers(reranker.exits)}, ranks by {ranks_by}",
        file=sys.stderr,
        flush=True,
    )
    if key is None and host not in LOOPBACK:
        warning = f"everyone who can reach {host} can use this server; require a key with --api-key-env"
        print(f"lwr serve: {warning}", file=sys.stderr)
    gc.freeze()  # the model and the libraries stay: garbage collections need not traverse them
    uvicorn.run(
        app,
        host=host,
        port=port,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=60,
    )
