"""Listening on a socket until a signal: the first one drains, the second one ends at once."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
import time
from collections.abc import Iterator
from types import FrameType

import uvicorn

from lockstep.errors import EnvironmentLacks
from lockstep.server.app import application
from lockstep.server.service import Service

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_POLL_S = 0.05


def bind(host: str, port: int) -> socket.socket:
    """A socket on that address; port 0 takes a free one.

    Raises: EnvironmentLacks if the address cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            bound.listen(1024)  # connections wait from now on, although nobody answers yet
        except OSError:
            bound.close()
            raise
    except OSError as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise EnvironmentLacks(
            f"{host}:{port}: expected an address to listen on, got: {reason}",
            hint="choose another --port, 0 for any that is free, or end what listens there",
        ) from error
    return bound


class Listener(uvicorn.Server):
    """Serves until it has drained."""

    def __init__(self, service: Service, config: uvicorn.Config, *, drain_s: float) -> None:
        super().__init__(config)
        self._service, self._drain_s = service, drain_s
        self._asked = 0  # how often
        self.last_signal = 0

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Counts signals while it serves; unlike the base, it does not raise them again."""

        def count(number: int, frame: FrameType | None) -> None:
            self.last_signal = number
            self.drain()

        if threading.current_thread() is not threading.main_thread():
            yield  # signals come to the main thread only
            return
        kept = {number: signal.signal(number, count) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in kept.items():
                signal.signal(number, handler)

    def drain(self) -> None:
        """Takes no new requests and ends when the others are answered; a second call ends now."""
        self._asked += 1
        self._service.draining = True

    async def main_loop(self) -> None:
        """Until it is asked to end, and what runs is answered."""
        counter = 0
        while not self._asked:
            await self.on_tick(counter)
            counter += 1
            await asyncio.sleep(_POLL_S)
        ends = time.monotonic() + self._drain_s
        while self._service.n_answering and self._asked < 2 and time.monotonic() < ends:
            await asyncio.sleep(_POLL_S)
        self.should_exit = True
        self.force_exit = self._service.n_answering > 0


def configured(service: Service, *, only_loopback: bool) -> uvicorn.Config:
    """The HTTP server for a service, quiet but for its errors."""
    return uvicorn.Config(
        application(service, only_loopback=only_loopback), http="h11", ws="none",
        log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=1,
    )  # fmt: skip


def serve(service: Service, bound: socket.socket, *, only_loopback: bool, drain_s: float) -> int:
    """Serves until a signal; the signal that cut answers off, 0 if all came to their end."""
    listener = Listener(service, configured(service, only_loopback=only_loopback), drain_s=drain_s)
    listener.run(sockets=[bound])
    return listener.last_signal if listener.force_exit else 0
