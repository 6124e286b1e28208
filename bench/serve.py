"""What serving costs: tokens/s over HTTP against a bare loop over the same session, alternating.

python bench/serve.py model.gguf --concurrent 1,2,4 --tokens 64 --rounds 3
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from lockstep.engine.model import Capacity, load
from lockstep.engine.session import InferenceSession, Logits, Piece
from lockstep.engine.source import open_source
from lockstep.engine.text import open_tokenizer
from lockstep.server.listen import Listener, bind, configured
from lockstep.server.served import Served
from lockstep.server.service import Limits, Service

PROMPT = 16  # tokens; what is timed begins behind them
SAMPLINGS = {
    "greedy": {"temperature": 0},
    "sampled": {"temperature": 0.8, "top_p": 0.95, "top_k": 40, "seed": 1},
}


def bare(session: InferenceSession, n_sequences: int, n_tokens: int) -> float:
    """Tokens per second of greedy sequences in a loop without a server."""
    for slot in range(session.shape.slots):
        session.reset(0, slot)
    ids = [session.prefill(prompt(slot), slot).argmax() for slot in range(n_sequences)]
    began = time.perf_counter()
    for _ in range(n_tokens):
        rows = session.read([Piece(slot, [int(id)]) for slot, id in enumerate(ids)])
        ids = [row[0].argmax() for row in rows]
    return n_sequences * n_tokens / (time.perf_counter() - began)


def prompt(slot: int) -> list[int]:
    """Tokens that differ from slot to slot, so that none is taken over."""
    return [(7 * slot + i) % 200 + 10 for i in range(PROMPT)]


@contextmanager
def serving(served: Served) -> Iterator[int]:
    """The port of a server around the session."""
    service = Service(served, Limits())
    with bind("127.0.0.1", 0) as bound:
        listener = Listener(service, configured(service, only_loopback=True), drain_s=10)
        thread = threading.Thread(target=listener.run, kwargs={"sockets": [bound]}, name="listener")
        thread.start()
        yield bound.getsockname()[1]
        listener.drain()
        thread.join()


class OwnTime:
    """CPU seconds of the server's threads outside of forward passes; load moves it less."""

    def __init__(self, session: InferenceSession) -> None:
        self._inside_s = 0.0
        read = session.read

        def timed(pieces: list[Piece]) -> list[Logits]:
            began = time.thread_time()
            try:
                return read(pieces)
            finally:
                self._inside_s += time.thread_time() - began

        session.read = timed  # type: ignore[method-assign]
        self._session, self._read = session, read

    def stop(self) -> float:
        """The seconds so far."""
        self._session.read = self._read  # type: ignore[method-assign]
        own = ("scheduler", "drawing", "listener")
        clocks = [
            time.pthread_getcpuclockid(thread.ident)
            for thread in threading.enumerate()
            if thread.name.startswith(own) and thread.ident is not None
        ]
        return sum(map(time.clock_gettime, clocks)) - self._inside_s


def streamed(port: int, n_sequences: int, n_tokens: int, sampling: dict[str, float]) -> float:
    """Tokens per second of streams, from the first event of all to the last one."""
    times: list[tuple[float, float]] = []

    def stream(slot: int) -> None:
        body = {"prompt": prompt(slot), "max_tokens": n_tokens + 1, "stream": True,
                "ignore_eos": True, **sampling}  # fmt: skip
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        connection.request("POST", "/v1/completions", json.dumps(body),
                           {"Content-Type": "application/json"})  # fmt: skip
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        first = 0.0
        while (line := answer.readline()).strip() != b"data: [DONE]":
            assert line, "the stream broke off"
            first = first or (time.perf_counter() if line.startswith(b"data:") else 0.0)
        times.append((first, time.perf_counter()))
        connection.close()

    threads = [threading.Thread(target=stream, args=(slot,)) for slot in range(n_sequences)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    began, ended = min(first for first, _ in times), max(last for _, last in times)
    return n_sequences * n_tokens / (ended - began)


def main() -> None:
    """Prints a row for each number of concurrent sequences and each way to sample."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--concurrent", default="1,2,4")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    asked = parser.parse_args()
    counts = [int(n) for n in asked.concurrent.split(",")]
    source = open_source(asked.model)
    context = PROMPT + asked.tokens + 8
    capacity = Capacity(context=context, slots=max(counts))
    opened = load(source, capacity, threads=asked.threads)
    served = Served(
        name="bench", session=opened.session, tokenizer=open_tokenizer(source), template=None
    )
    print("| concurrent | sampling | bare tok/s | served tok/s | served / bare (min to max) "
          "| server's own CPU, ms/token |\n|---|---|---|---|---|---|")  # fmt: skip
    for n in counts:
        for name, sampling in SAMPLINGS.items():
            rows = []
            for _ in range(asked.rounds):
                alone = bare(opened.session, n, asked.tokens)
                with serving(served) as port:
                    own = OwnTime(opened.session)
                    rate = streamed(port, n, asked.tokens, sampling)
                    rows.append((alone, rate, 1000 * own.stop() / (n * (asked.tokens + 1))))
            ratios = [rate / alone for alone, rate, _ in rows]
            medians = [statistics.median(column) for column in np.transpose(rows)]
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            cells = (n, name, f"{medians[0]:.1f}", f"{medians[1]:.1f}", spread, f"{medians[2]:.2f}")
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
