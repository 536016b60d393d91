"""What a request meets before the application: the API key, a place, and a limit on its body.

Plain ASGI, so that a refused body is never read, and one without end never held.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN = ("/", "/health")
KINDS = {401: "unauthorized", 408: "timeout", 500: "backend", 503: "overloaded"}


@dataclass(frozen=True)
class Limits:
    """Of one request, and how many may be inside at once: being read, waiting, and being scored."""

    body_bytes: int = 4 * 2**20
    documents: int = 1000
    characters: int = 100_000  # of a query, of a document
    requests: int = 256
    seconds_to_send: float = 30.0


class Refused(Exception):
    """Carries status and sentence of the answer."""

    def __init__(self, status: int, message: str, **headers: str):
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers


def problem(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """The body of every error: `lwr.serving.api_types.Problem`."""
    told = {"error": message, "error_type": KINDS.get(status, "validation")}
    return JSONResponse(told | {"detail": message, "message": message}, status, headers)


class Gate:
    """Answers 401 without the key, 415, 503 when full, 413 and 408 while the body comes in; else the application does.

    A client that hangs up takes its request back, unless it is being scored already.
    """

    def __init__(self, app: ASGIApp, limits: Limits, key: str | None, posts: Collection[str]):
        """key: what `Authorization: Bearer …` must carry, but for OPEN; None: nothing. posts: paths with a body."""
        self.app, self.limits, self.key, self.posts = app, limits, key, posts
        self.inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        try:
            request, path = Request(scope), scope["path"]
            if path not in OPEN:
                self._authorise(request)
            if request.method != "POST" or path not in self.posts:
                return await self.app(scope, receive, send)
            self._admit(request)
            self.inside += 1
            try:
                await self._pass(scope, await self._body(receive), receive, send)
            finally:
                self.inside -= 1
        except Refused as refused:
            # `close`: what is left of the body is not read, so nothing else can come over this connection
            headers = refused.headers | ({"Connection": "close"} if request.method == "POST" else {})
            await problem(refused.status, refused.message, headers)(scope, receive, send)

    def _authorise(self, request: Request) -> None:
        if self.key is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        # compare_digest takes as long for a wrong key as for one that is nearly right
        right = hmac.compare_digest(given.strip().encode("latin-1"), self.key.encode())
        if scheme.lower() != "bearer" or not right:
            raise Refused(
                401, "no valid API key; send `Authorization: Bearer KEY`", **{"WWW-Authenticate": "Bearer"}
            )

    def _admit(self, request: Request) -> None:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        # forms of other web sites can send text/plain here unasked, but not this
        if kind != "application/json":
            raise Refused(415, f"Content-Type is {kind or 'missing'}; send application/json")
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > self.limits.body_bytes:
            raise self._too_large(int(length))
        if self.inside >= self.limits.requests:
            raise Refused(503, f"{self.inside} requests wait; try again", **{"Retry-After": "1"})

    def _too_large(self, size: int) -> Refused:
        return Refused(
            413, f"the body has {size} bytes or more; at most {self.limits.body_bytes}, send fewer documents"
        )

    async def _body(self, receive: Receive) -> bytes:
        body = bytearray()
        try:
            async with asyncio.timeout(self.limits.seconds_to_send):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refused(408, "the client hung up")
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > self.limits.body_bytes:
                        raise self._too_large(len(body))
        except TimeoutError:
            raise Refused(
                408, f"the body took longer than {self.limits.seconds_to_send:g} s; send it faster"
            ) from None
        return bytes(body)

    async def _pass(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Run the application, until the client hangs up."""
        unread = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return unread.pop() if unread else await asyncio.Future()

        answering = asyncio.create_task(self.app(scope, replay, send))
        leaving = asyncio.create_task(receive())
        try:
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            answering.cancel()  # nothing, where it is done
        with suppress(asyncio.CancelledError):
            await answering
