"""What every request passes: the key, the host, the drain, and the count of answers."""

from __future__ import annotations

import hmac
import time

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lockstep.server.api_error import ApiError
from lockstep.server.service import Service

OPEN = ("/health",)  # without a key, and while draining
DRAINED_LAST = ("/health", "/metrics")
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


class Gate:
    """Lets a request in, or answers it with the reason why not."""

    def __init__(self, app: ASGIApp, *, service: Service, only_loopback: bool) -> None:
        self._app, self._service, self._only_loopback = app, service, only_loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        service, path = self._service, scope["path"]
        began, status = time.monotonic(), 0

        async def count(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        app = self._app
        refusal = self._refusal(path, Headers(scope=scope))
        if refusal is not None:
            app = JSONResponse(refusal.body, refusal.status, refusal.headers)
        service.n_answering += path not in DRAINED_LAST
        try:
            await app(scope, receive, count)
        finally:
            service.n_answering -= path not in DRAINED_LAST
            # The route that answered; paths that nobody serves are one, or anybody fills the table.
            endpoint = getattr(scope.get("route"), "path", "other")
            service.metrics.requests.labels(endpoint, status or "gone").inc()
            service.metrics.request_s.labels(endpoint).observe(time.monotonic() - began)

    def _refusal(self, path: str, headers: Headers) -> ApiError | None:
        service = self._service
        host = headers.get("host", "").rpartition(":")
        name = host[0] if host[0] and host[2].isdigit() else headers.get("host", "")
        if self._only_loopback and name.lower() not in _LOOPBACK:
            # A page of another site can make a browser ask this machine under the page's own name.
            message = f"host: expected {' or '.join(_LOOPBACK)}, got {name!r:.80}"
            return ApiError(403, message, code="wrong_host")
        if path not in OPEN and service.api_key is not None and not self._has_key(headers):
            message = "authorization: expected `Bearer KEY` with the key of this server"
            return ApiError(401, message, code="invalid_api_key")
        if service.draining and path not in DRAINED_LAST:
            message = "this server is about to end and takes no new requests"
            return ApiError(503, message, code="draining", retry_s=5)
        return None

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        expected = (self._service.api_key or "").encode()
        given = key.strip().encode("latin-1")  # as headers are decoded: the bytes that were sent
        return scheme.lower() == "bearer" and hmac.compare_digest(given, expected)
