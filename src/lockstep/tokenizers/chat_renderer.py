"""Chat templates rendered in a process with limits: they are other people's programs."""

from __future__ import annotations

import json
import os
import select
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from lockstep.errors import InputError, UsageError

TIMEOUT_S = 10.0
MAX_ANSWER_BYTES = 1 << 28
_WORKER = Path(__file__).with_name("chat_worker.py")  # not imported: it imports jinja2
_HINT = "choose another one with --chat-template, for example chatml"


class ChatRenderer:
    """One worker that renders, started at once, since a start takes it a tenth of a second.

    Threads may share it. A new worker takes its place when a template kills it.
    """

    def __init__(self, *, timeout_s: float = TIMEOUT_S) -> None:
        self.timeout_s = timeout_s
        self._lock = threading.Lock()
        self._worker = self._started()

    def __enter__(self) -> ChatRenderer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

    def close(self) -> None:
        """Ends the worker."""
        self._worker.kill()
        self._worker.wait()
        for pipe in (self._worker.stdin, self._worker.stdout):
            assert pipe is not None
            pipe.close()

    def reads(self, template: str, where: str) -> frozenset[str]:
        """The variables that a template asks for.

        Raises: InputError if it is not a template.
        """
        return frozenset(self._asked({"template": template}, where)["reads"])

    def render(self, template: str, variables: Mapping[str, Any], where: str) -> str:
        """The text of a template with these variables, which JSON can spell.

        Raises: UsageError if the template refuses them. InputError if it fails, loops for ever or
        fills the memory.
        """
        answer = self._asked({"template": template, "variables": dict(variables)}, where)
        text: str = answer["text"]
        return text

    def _asked(self, request: dict[str, Any], where: str) -> dict[str, Any]:
        with self._lock:
            try:
                answer = self._answer(json.dumps(request).encode("ascii"))
            except (OSError, EOFError, TimeoutError) as error:
                self.close()
                self._worker = self._started()
                raise InputError(
                    f"{where}: expected a chat template that ends, got: {error}", hint=_HINT
                ) from error
        if answer.get("fault") == "refused":
            raise UsageError(
                f"{where}: expected messages that it takes, got: {answer['message']:.300}",
                hint="change the messages, or choose another template with --chat-template",
            )
        if "fault" in answer:
            raise InputError(
                f"{where}: expected a chat template that works, got: {answer['message']:.300}",
                hint=_HINT,
            )
        return answer

    def _answer(self, request: bytes) -> dict[str, Any]:
        """What the worker says, in time."""
        assert self._worker.stdin is not None
        deadline = time.monotonic() + self.timeout_s
        self._worker.stdin.write(struct.pack(">I", len(request)) + request)
        self._worker.stdin.flush()
        (length,) = struct.unpack(">I", self._read(4, deadline))
        if length > MAX_ANSWER_BYTES:
            raise OSError("an answer that is too long")
        answer: dict[str, Any] = json.loads(self._read(length, deadline))
        return answer

    def _read(self, n_bytes: int, deadline: float) -> bytes:
        """So many bytes of the answer."""
        assert self._worker.stdout is not None
        handle = self._worker.stdout.fileno()
        found = bytearray()
        while len(found) < n_bytes:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([handle], [], [], left)[0]:
                raise TimeoutError(f"it took longer than {self.timeout_s:g} s")
            part = os.read(handle, min(n_bytes - len(found), 1 << 20))
            if not part:
                raise EOFError(f"it used more time or memory than its share ({self._ending()})")
            found += part
        return bytes(found)

    def _ending(self) -> str:
        code = self._worker.wait()
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def _started(self) -> subprocess.Popen[bytes]:
        # By its path and with -P, so that nothing beside it is imported by accident, and apart
        # from the terminal, whose Ctrl-C is for the answer.
        command = [sys.executable, "-P", str(_WORKER)]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
