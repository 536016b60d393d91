"""What stands before the application: a body in time, a client who stays, and errors that go on."""

from __future__ import annotations

import asyncio
import json

import pytest

from lwr.serving.admission import Gate, Limits


def through(gate: Gate, messages: list[dict]) -> list[dict]:
    """What a gate sends to a client who sends these and then nothing more."""
    sent, left = [], list(messages)

    async def receive():
        return left.pop(0) if left else await asyncio.Future()

    async def send(message):
        sent.append(message)

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/x", "headers": headers, "query_string": b""}
    asyncio.run(asyncio.wait_for(gate(scope, receive, send), 10))
    return sent


def test_a_body_must_come_in_time():
    gate = Gate(None, Limits(seconds_to_send=0.05), None, ["/x"])
    start, body = through(gate, [{"type": "http.request", "body": b"{", "more_body": True}])
    assert start["status"] == 408
    assert json.loads(body["body"])["error_type"] == "timeout"
    assert gate.inside == 0


def test_who_hangs_up_takes_the_request_back():
    ended = []

    async def endless(scope, receive, send):
        try:
            assert (await receive())["body"] == b"{}"
            await asyncio.Future()
        finally:
            ended.append(gate.inside)

    gate = Gate(endless, Limits(), None, ["/x"])
    body = {"type": "http.request", "body": b"{}"}
    assert through(gate, [body, {"type": "http.disconnect"}]) == []
    assert ended == [1]
    assert gate.inside == 0


def test_what_the_application_raises_is_not_swallowed():
    async def broken(scope, receive, send):
        raise RuntimeError("no")

    gate = Gate(broken, Limits(), None, ["/x"])
    with pytest.raises(RuntimeError, match="no"):
        through(gate, [{"type": "http.request", "body": b"{}"}])
    assert gate.inside == 0
