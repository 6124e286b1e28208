"""Reading a request's body, and answering it while the client is there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from lockstep.server.api_error import ApiError
from lockstep.server.parameters import Body, parse
from lockstep.server.service import Answers, Limits

B = TypeVar("B", bound=Body)
T = TypeVar("T")

CLIENT_GONE = 499  # what proxies log; nobody receives it
_COURTESY = 8  # times the limit: how much of a body too large is read, so that the answer arrives
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
    try:
        data = await asyncio.wait_for(_read(request, limits.max_body_bytes), limits.body_s)
    except TimeoutError:
        message = f"body: expected all of it within {limits.body_s:g} seconds"
        raise ApiError(408, message, code="body_timeout") from None
    return parse(kind, data)


async def _read(request: Request, most: int) -> bytes:
    data, size = bytearray(), 0
    async for part in request.stream():
        size += len(part)
        if size > most * _COURTESY:
            break
        if size <= most:
            data += part
    if size > most:
        message = f"body: expected at most {most} bytes, got more"
        raise ApiError(413, message, code="body_too_large")
    return bytes(data)


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
        finally:
            answers.close()

    return EventSourceResponse(lines(), sep="\n", ping=PING_S, headers=headers)


def dumps(document: Any) -> str:
    """A document on one line."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
