"""Reading a request's body, and answering it while the client is there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from lockstep.server.api_error import ApiError
from lockstep.server.parameters import Body, parse
from lockstep.server.service import Answers, Limits

B = TypeVar("B", bound=Body)
T = TypeVar("T")

CLIENT_GONE = 499  # what proxies log; nobody receives it
_LINGER_S = 5.0  # how long the rest of a body too large is waited for, so that the answer arrives
PING_S = 15


async def read_body(request: Request, kind: type[B], limits: Limits) -> B:
    """The parameters of a request.

    Raises: ApiError if the body is no JSON, too large, too slow, or a parameter is wrong.
    """
    content_type = request.headers.get("content-type", "application/json")
    if content_type.partition(";")[0].strip().lower() != "application/json":
        # Other types are what a page of any site may send here without asking the browser.
        message = f"content-type: expected application/json, got {content_type:.80}"
        raise ApiError(415, message, code="unsupported_content_type")
    declared, most = request.headers.get("content-length", ""), limits.max_body_bytes
    if declared.isdecimal() and int(declared) > most:
        raise _too_large(most, declared, unread=True)
    try:
        data = await asyncio.wait_for(_read(request, most), limits.body_s)
    except TimeoutError:
        message = f"body: expected all of it within {limits.body_s:g} seconds"
        raise ApiError(408, message, code="body_timeout") from None
    return parse(kind, data)


async def _read(request: Request, most: int) -> bytes:
    data, more = bytearray(), True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        data += message.get("body", b"")
        more = message.get("more_body", False)
        if len(data) > most:
            raise _too_large(most, "more", unread=more)
    return bytes(data)


def _too_large(most: int, found: str, *, unread: bool) -> ApiError:
    message = f"body: expected at most {most} bytes, got {found}"
    return ApiError(413, message, code="body_too_large", unread=unread)


class LastAnswer(JSONResponse):
    """An answer that is sent before the body has come, and the end of the connection.

    A client that sends all before it listens would find the connection broken, and no answer: what
    it sends is dropped for a while.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the answer, and waits for the end of the body."""
        self.headers["connection"] = "close"
        start = {"type": "http.response.start", "status": self.status_code}
        await send({**start, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": bytes(self.body), "more_body": True})
        with suppress(TimeoutError):
            await asyncio.wait_for(_drop(receive), _LINGER_S)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _drop(receive: Receive) -> None:
    while (await receive()).get("more_body", False):
        pass


def ignored_header(body: Body) -> dict[str, str]:
    """The names of the parameters that have no effect here."""
    names = [name for name in body.ignored if name.isascii() and name.isprintable()]
    return {"X-Ignored-Parameters": ", ".join(names)[:1000]} if names else {}


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of some work, which is given up when the client goes away.

    Raises: ClientDisconnect.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return await working
    finally:
        for task in (working, watching):
            task.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def answer_whole(
    request: Request, answers: Answers, make: Callable[[Answers], Coroutine[Any, Any, Any]],
    headers: dict[str, str],
) -> Response:  # fmt: skip
    """One document, made from all events."""
    try:
        return JSONResponse(await while_connected(request, make(answers)), headers=headers)
    except ClientDisconnect:
        return Response(status_code=CLIENT_GONE)
    finally:
        answers.close()


def answer_stream(
    answers: Answers, chunks: AsyncIterator[dict[str, Any]], headers: dict[str, str]
) -> Response:
    """Server-sent events, ended by `[DONE]`."""

    async def lines() -> AsyncIterator[ServerSentEvent]:
        try:
            async for chunk in chunks:
                yield ServerSentEvent(dumps(chunk))
            yield ServerSentEvent("[DONE]")
        except ApiError as error:  # the status is sent already
            yield ServerSentEvent(dumps(error.body))

    return _Stream(answers, lines(), headers)


class _Stream(EventSourceResponse):
    """Events that are given up when the client goes away, even before the first was asked for."""

    def __init__(
        self, answers: Answers, lines: AsyncIterator[ServerSentEvent], headers: dict[str, str]
    ) -> None:
        super().__init__(lines, sep="\n", ping=PING_S, headers=headers)
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answers.close()


def dumps(document: Any) -> str:
    """A document on one line."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
