"""A hub on this machine: listings, resolve with redirects to a store of files, and its bad days."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "org/model"
LFS = (".gguf", ".safetensors")


@dataclass
class Hub:
    """What the hub has, how it misbehaves, and what it was asked: method, path and range.

    Its store is another host, as far as a client can tell.
    `cut` is the bytes after which the next answers from the store break off; one use each.
    `refuses` maps a path's beginning to a status and the X-Error-Code that goes with it.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    sent: dict[str, bytes] = field(default_factory=dict)  # instead of what is declared
    listed: dict[str, Any] = field(default_factory=dict)  # instead of the true listing
    cut: list[int] = field(default_factory=list)
    refuses: dict[str, tuple[int, str]] = field(default_factory=dict)
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    tokens: dict[str, str | None] = field(default_factory=dict)  # path: what was sent with it

    def listing(self) -> dict[str, Any]:
        """What /api/models answers with ?blobs=true."""
        siblings = []
        for name, content in self.files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": blob}
            if name.endswith(LFS):
                sha256 = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 130}
            siblings.append(entry)
        return {"id": REPO, "sha": COMMIT, "siblings": siblings} | self.listed

    def ranges(self) -> list[str]:
        """The ranges that the store was asked for, "" for whole files."""
        return [wanted for _, path, wanted in self.asked if path.startswith("/store/")]


@contextmanager
def running() -> Iterator[Hub]:
    """A hub that answers while the block runs."""
    hub = Hub()

    class Handler(_Handler):
        served = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    served: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing: the tests read what was asked."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub, path = self.served, unquote(urlsplit(self.path).path)
        hub.asked.append((self.command, path, self.headers.get("Range", "")))
        hub.tokens[path] = self.headers.get("Authorization")
        for begin, (status, code) in hub.refuses.items():
            if path.startswith(begin):
                return self._send(status, b"{}", {"X-Error-Code": code})
        if path.startswith(f"/api/models/{REPO}"):
            return self._send(200, json.dumps(hub.listing()).encode())
        if path.startswith("/api/models/"):
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if found := re.fullmatch(rf"/{REPO}/resolve/([^/]+)/(.+)", path):
            return self._resolve(found[2])
        if path.startswith("/store/"):
            return self._store(path.removeprefix("/store/"))
        return self._send(404, b"")

    def _resolve(self, name: str) -> None:
        hub = self.served
        if name not in hub.files:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        sha256 = hashlib.sha256(hub.files[name]).hexdigest()
        facts = {"X-Repo-Commit": COMMIT, "X-Linked-Etag": f'"{sha256}"'}
        facts["X-Linked-Size"] = str(len(hub.files[name]))
        elsewhere = hub.url.replace("127.0.0.1", "localhost")
        return self._send(302, b"", facts | {"Location": f"{elsewhere}/store/{name}"})

    def _store(self, name: str) -> None:
        hub = self.served
        content = hub.sent.get(name, hub.files[name])
        start, headers = 0, {}
        if wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(wanted[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        at_most = hub.cut.pop(0) if hub.cut else None
        self._send(206 if start else 200, content[start:], headers, at_most)

    def _send(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        at_most: int | None = None,
    ) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:at_most])
        if at_most is not None:
            self.close_connection = True
