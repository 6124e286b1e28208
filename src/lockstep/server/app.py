"""The application: which path is answered by what, and how errors look."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lockstep.server.api_error import ApiError
from lockstep.server.chat import chat_completions
from lockstep.server.completions import completions
from lockstep.server.embeddings import embeddings
from lockstep.server.exchange import CLIENT_GONE, LastAnswer
from lockstep.server.gate import Gate
from lockstep.server.preparation import check_model
from lockstep.server.service import Service
from lockstep.server.tokens import detokenize, tokenize, tokenizer_info

log = logging.getLogger(__name__)


def application(service: Service, *, only_loopback: bool) -> Starlette:
    """The HTTP side of a service.

    `only_loopback` refuses requests that name another host than this machine.
    """

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        service.start()
        yield
        service.stop()

    routes = [
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/v1/chat/completions", chat_completions, methods=["POST"]),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/embeddings", embeddings, methods=["POST"]),
        Route("/tokenize", tokenize, methods=["POST"]),
        Route("/detokenize", detokenize, methods=["POST"]),
        Route("/tokenizer_info", tokenizer_info),
        Route("/health", health),
        Route("/metrics", metrics),
    ]
    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[Middleware(Gate, service=service, only_loopback=only_loopback)],
        exception_handlers={
            ApiError: _api_error,
            HTTPException: _http_error,
            ClientDisconnect: _client_gone,
            Exception: _our_bug,
        },
    )
    app.state.service = service
    return app


async def models(request: Request) -> Response:
    """The one model."""
    service: Service = request.app.state.service
    return JSONResponse({"object": "list", "data": [_model_document(service)]})


async def model(request: Request) -> Response:
    """The one model, if that is the name."""
    service: Service = request.app.state.service
    check_model(service, request.path_params["name"])
    return JSONResponse(_model_document(service))


def _model_document(service: Service) -> dict[str, object]:
    return {
        "id": service.served.name,
        "object": "model",
        "created": service.created,
        "owned_by": "lockstep",
        "max_model_len": service.context,
    }


async def health(request: Request) -> Response:
    """Whether new requests are taken."""
    service: Service = request.app.state.service
    if service.draining:
        return JSONResponse({"status": "draining"}, 503)
    return JSONResponse({"status": "ok"})


async def metrics(request: Request) -> Response:
    """The counters for Prometheus."""
    service: Service = request.app.state.service
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    kind = LastAnswer if error.unread else JSONResponse
    return kind(error.body, error.status, error.headers)


def _http_error(request: Request, error: Exception) -> Response:
    """A path or a method that is not served."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path:.80}: {error.detail.lower()}"
    code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code)
    body = ApiError(error.status_code, message, code=code).body
    return JSONResponse(body, error.status_code, error.headers)


def _client_gone(_: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)


def _our_bug(request: Request, error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    body = ApiError(500, "the server failed; its log says why", code="internal_error").body
    return JSONResponse(body, 500)
