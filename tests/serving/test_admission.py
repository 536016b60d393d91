"""Admission: the time for a body, clients that disconnect, and errors of the application."""

from __future__ import annotations

import asyncio
import json

import pytest

from lwr.serving.admission import Admission, Limits


def through(admission: Admission, messages: list[dict]) -> list[dict]:
    """Return the answer to a client who sends these and then nothing more."""
    sent, left = [], list(messages)

    async def receive():
        return left.pop(0) if left else await asyncio.Future()

    async def send(message):
        sent.append(message)

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/x", "headers": headers, "query_string": b""}
    asyncio.run(asyncio.wait_for(admission(scope, receive, send), 10))
    return sent


def test_slow_body_is_answered_with_timeout():
    admission = Admission(None, Limits(seconds_to_send=0.05), None, ["/x"])
    start, body = through(admission, [{"type": "http.request", "body": b"{", "more_body": True}])
    assert start["status"] == 408
    assert json.loads(body["body"])["error_type"] == "timeout"
    assert admission.active_requests == 0


def test_request_of_disconnected_client_is_cancelled():
    ended = []

    async def endless(scope, receive, send):
        try:
            assert (await receive())["body"] == b"{}"
            await asyncio.Future()
        finally:
            ended.append(admission.active_requests)

    admission = Admission(endless, Limits(), None, ["/x"])
    body = {"type": "http.request", "body": b"{}"}
    assert through(admission, [body, {"type": "http.disconnect"}]) == []
    assert ended == [1]
    assert admission.active_requests == 0


def test_errors_of_the_application_are_raised():
    async def broken(scope, receive, send):
        raise RuntimeError("no")

    admission = Admission(broken, Limits(), None, ["/x"])
    with pytest.raises(RuntimeError, match="no"):
        through(admission, [{"type": "http.request", "body": b"{}"}])
    assert admission.active_requests == 0
