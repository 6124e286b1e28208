"""SVG to PNG in a process with limits; what kills that process is an invalid drawing."""

from __future__ import annotations

import importlib.util
import os
import select
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from lockstep.data import render_worker
from lockstep.data.svg import parse_svg
from lockstep.errors import EnvironmentLacks, InputError, UsageError

MAX_SIZE = 2048
TIMEOUT_S = 10.0
_XMLNS = 'xmlns="http://www.w3.org/2000/svg"'


class Renderer:
    """One worker process that renders many drawings; a new one takes its place when it dies."""

    def __init__(self, *, timeout_s: float = TIMEOUT_S) -> None:
        self.timeout_s = timeout_s
        self._worker: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Renderer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

    def close(self) -> None:
        """Ends the worker."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill()
            worker.wait()
            for pipe in (worker.stdin, worker.stdout):
                assert pipe is not None
                pipe.close()

    def render(self, svg: str, size: int = 256) -> bytes:
        """The drawing as a square PNG.

        Raises: InputError if the SVG is not allowed, or rendering fails, crashes or is too slow.
        """
        if not 1 <= size <= MAX_SIZE:
            raise UsageError(
                f"render: expected a size from 1 to {MAX_SIZE}, got {size}",
                hint="choose a smaller picture",
            )
        root = parse_svg(svg)
        return self.render_unchecked(svg if "xmlns" in root.attributes else _named(svg), size)

    def render_unchecked(self, svg: str, size: int) -> bytes:
        """Like `render`, without the reader before it: only the limits of the process protect.

        Raises: InputError if the rendering fails, crashes or is too slow.
        """
        data = svg.encode("utf-8")
        worker = self._running()
        assert worker.stdin is not None
        try:
            worker.stdin.write(struct.pack(">II", len(data), size) + data)
            worker.stdin.flush()
            drawn, length = struct.unpack(">?I", self._read(5))
            answer = self._read(length)
        except (OSError, EOFError, TimeoutError) as error:
            worker.poll()
            self.close()
            reason = str(error) or f"the renderer ended with {worker.returncode}"
            raise InputError(
                f"render: expected a picture, got none: {reason}", hint="simplify the drawing"
            ) from error
        if not drawn:
            reason = answer.decode("utf-8", "replace")
            raise InputError(
                f"render: expected a picture, got: {reason:.200}", hint="mend the drawing"
            )
        return answer

    def _running(self) -> subprocess.Popen[bytes]:
        if self._worker is None or self._worker.poll() is not None:
            self.close()
            if importlib.util.find_spec("resvg_py") is None:
                raise EnvironmentLacks(
                    "render: expected the package resvg-py, got none",
                    hint="install it with `pip install resvg-py`",
                )
            # By its path and with -P, so that nothing beside it is imported by accident.
            command = [sys.executable, "-P", str(Path(render_worker.__file__))]
            self._worker = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        return self._worker

    def _read(self, n_bytes: int) -> bytes:
        """So many bytes of the answer."""
        assert self._worker is not None
        assert self._worker.stdout is not None
        handle = self._worker.stdout.fileno()
        deadline = time.monotonic() + self.timeout_s
        found = b""
        while len(found) < n_bytes:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([handle], [], [], left)[0]:
                raise TimeoutError(f"it took longer than {self.timeout_s:g} s")
            part = os.read(handle, n_bytes - len(found))
            if not part:
                raise EOFError(_ending(self._worker.wait()))
            found += part
        return found


def _ending(code: int) -> str:
    return f"the renderer was ended by signal {-code}" if code < 0 else f"it ended with {code}"


def _named(svg: str) -> str:
    """Rows leave out the namespace, which a renderer of files insists on."""
    start = svg.index("<svg") + len("<svg")
    return f"{svg[:start]} {_XMLNS}{svg[start:]}"


def render(svg: str, size: int = 256) -> bytes:
    """One drawing as a square PNG, through a worker of its own.

    Raises: InputError if the SVG is not allowed, or rendering fails, crashes or is too slow.
    """
    with Renderer() as renderer:
        return renderer.render(svg, size)
