"""Checks that a request passes before the application: the API key, the number of requests, and the limits of its body.

This is plain ASGI, so that the body of a refused request is not read, and an endless body is not kept in memory.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lwr.serving.errors import Refused, error_response

PUBLIC_PATHS = ("/", "/health")
"""Paths that need no API key."""


@dataclass(frozen=True)
class Limits:
    """Limits of one request, and of the number of requests."""

    body_bytes: int = 4 * 2**20
    documents: int = 1000
    characters: int = 100_000  # of a query, and of a document
    requests: int = 256  # at the same time: being read, waiting, or being scored
    seconds_to_send: float = 30.0


class Admission:
    """ASGI middleware that passes on admissible requests, with their bodies read, and answers all others itself.

    It answers 401 without the API key, 415 for another content type, 503 above the limit of requests, 413 and 408 for
    a body that is too large or too slow. When a client disconnects, its request is cancelled unless it is being scored.
    """

    def __init__(self, app: ASGIApp, limits: Limits, key: str | None, post_paths: Collection[str]):
        """Wrap an application.

        Args:
            app: The application.
            limits: The limits that a request may not exceed.
            key: The key expected in `Authorization: Bearer …`, except on PUBLIC_PATHS; None: no key is required.
            post_paths: The paths that take a body.
        """
        self.app, self.limits, self.key, self.post_paths = app, limits, key, post_paths
        self.active_requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request, path = Request(scope), scope["path"]
        try:
            if path not in PUBLIC_PATHS:
                self._check_key(request)
            if request.method != "POST" or path not in self.post_paths:
                return await self.app(scope, receive, send)
            self._check_headers(request)
            self.active_requests += 1
            try:
                body = await self._read_body(receive)
                await self._run_until_disconnect(scope, body, receive, send)
            finally:
                self.active_requests -= 1
        except Refused as refused:
            # The rest of the body is not read, so the connection cannot be used for another request.
            close = {"Connection": "close"} if request.method == "POST" else {}
            response = error_response(refused.status, refused.message, refused.headers | close)
            await response(scope, receive, send)

    def _check_key(self, request: Request) -> None:
        if self.key is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        # compare_digest takes the same time for every wrong key, however much of it is right.
        is_right = hmac.compare_digest(given.strip().encode("latin-1"), self.key.encode())
        if scheme.lower() != "bearer" or not is_right:
            message = "no valid API key; send `Authorization: Bearer KEY`"
            raise Refused(401, message, {"WWW-Authenticate": "Bearer"})

    def _check_headers(self, request: Request) -> None:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        # A form on another web site can post text/plain without a CORS preflight of the browser, but not this type.
        if kind != "application/json":
            raise Refused(415, f"Content-Type is {kind or 'missing'}; send application/json")
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > self.limits.body_bytes:
            raise self._too_large(int(length))
        if self.active_requests >= self.limits.requests:
            raise Refused(503, f"{self.active_requests} requests wait; try again", {"Retry-After": "1"})

    def _too_large(self, size: int) -> Refused:
        most = self.limits.body_bytes
        return Refused(413, f"the body has {size} bytes or more; at most {most}, send fewer documents")

    async def _read_body(self, receive: Receive) -> bytes:
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
            seconds = self.limits.seconds_to_send
            raise Refused(408, f"the body took longer than {seconds:g} s; send it faster") from None
        return bytes(body)

    async def _run_until_disconnect(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Run the application on a body that was read, and cancel it when the client disconnects."""
        unread = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_body() -> Message:
            return unread.pop() if unread else await asyncio.Future()

        answer = asyncio.ensure_future(self.app(scope, receive_body, send))
        disconnect = asyncio.ensure_future(receive())
        try:
            await asyncio.wait((answer, disconnect), return_when=asyncio.FIRST_COMPLETED)
        finally:
            disconnect.cancel()
            answer.cancel()  # has no effect on a task that is done
        with suppress(asyncio.CancelledError):
            await answer
