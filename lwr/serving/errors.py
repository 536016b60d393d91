"""Every error as one sentence in one shape (`api_types.Problem`), which repeats no long or odd value of the request."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

ERROR_TYPES = {401: "unauthorized", 408: "timeout", 500: "backend", 503: "overloaded"}
"""Status -> `error_type` of the answer; that of every other status is `validation`."""
LONGEST_QUOTED = 40
"""Characters of a wrong text that an error repeats."""


class Refused(Exception):
    """A request that is not answered, with the status, the sentence and the headers of the error."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.headers = status, message, dict(headers or {})


def error_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Make the answer to a request that failed, in the shape of `api_types.Problem`."""
    kind = ERROR_TYPES.get(status, "validation")
    content = {"error": message, "error_type": kind, "detail": message, "message": message}
    return JSONResponse(content, status, headers)


def add_error_handlers(app: FastAPI) -> None:
    """Let an application answer every error by `error_response`."""
    app.add_exception_handler(Refused, _answer_refused)  # pyright: ignore[reportArgumentType]
    app.add_exception_handler(RequestValidationError, _answer_invalid)  # pyright: ignore[reportArgumentType]
    app.add_exception_handler(HTTPException, _answer_http)  # pyright: ignore[reportArgumentType]
    app.add_exception_handler(Exception, _answer_failed)


async def _answer_refused(_: Request, error: Refused) -> JSONResponse:
    return error_response(error.status, error.message, error.headers)


async def _answer_invalid(_: Request, error: RequestValidationError) -> JSONResponse:
    first, *others = error.errors()
    if first["type"] == "json_invalid":
        reason, character = first["ctx"]["error"], first["loc"][1]
        return error_response(400, f"the body is not JSON: {reason}, character {character}")
    # where several types are accepted, the name of one of them precedes the field
    place = [str(part) for part in first["loc"][1:] if part not in ("RerankRequest", "TeiRequest")]
    field = ".".join(place) or "the body"
    more = f" (and {len(others)} more)" if others else ""
    return error_response(422, f"{field}: {first['msg']}{_quote(first['input'])}{more}")


async def _answer_http(request: Request, error: HTTPException) -> JSONResponse:
    message = error.detail
    if error.status_code in (404, 405):
        message += f": {request.method} here; /openapi.json lists the paths"
    return error_response(error.status_code, message, error.headers)


async def _answer_failed(_: Request, error: Exception) -> JSONResponse:
    return error_response(500, f"scoring failed ({type(error).__name__}); the server's log has more")


def _quote(value: object) -> str:
    """Return `, not …` for a number or a short text, else nothing."""
    is_short = isinstance(value, int | float | None) or (
        isinstance(value, str) and len(value) <= LONGEST_QUOTED
    )
    return f", not {value!a}" if is_short else ""
