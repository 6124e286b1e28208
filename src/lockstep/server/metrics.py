"""What the server counts, in the text form of Prometheus."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

disable_created_metrics()  # type: ignore[no-untyped-call]  # when each counter was made, which nobody asks for

_PASS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_WAIT_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._count(self.registry)
        self._measure(self.registry)

    def _count(self, r: CollectorRegistry) -> None:
        self.requests = Counter(
            "lockstep_requests", "Answered requests.", ("endpoint", "status"), registry=r
        )
        self.prompt_tokens = Counter(
            "lockstep_prompt_tokens", "Tokens of prompts, those in a slot already too.", registry=r
        )
        self.cached_tokens = Counter(
            "lockstep_cached_prompt_tokens", "Tokens of prompts that a slot had read.", registry=r
        )
        self.generated_tokens = Counter(
            "lockstep_generated_tokens", "Tokens that were generated.", registry=r
        )
        self.cancelled = Counter(
            "lockstep_cancelled_requests", "Requests whose client went away.", registry=r
        )
        self.waiting = Gauge(
            "lockstep_waiting_requests", "Requests with a part that has no slot yet.", registry=r
        )
        self.slots = Gauge("lockstep_slots", "Sequences that fit at once.", registry=r)
        self.slots_used = Gauge("lockstep_slots_used", "Sequences that run now.", registry=r)

    def _measure(self, r: CollectorRegistry) -> None:
        self.pass_s = Histogram(
            "lockstep_pass_seconds", "Time of a forward pass.", registry=r, buckets=_PASS_S
        )
        self.pass_rows = Histogram(
            "lockstep_pass_rows", "Tokens in a forward pass.", registry=r, buckets=_ROWS
        )
        self.pass_sequences = Histogram(
            "lockstep_pass_sequences", "Sequences in a forward pass.", registry=r, buckets=_ROWS
        )
        self.first_token_s = Histogram(
            "lockstep_time_to_first_token_seconds", "From the request's arrival to the first "
            "token of each of its sequences.", registry=r, buckets=_WAIT_S,
        )  # fmt: skip
        self.token_s = Histogram(
            "lockstep_time_per_token_seconds", "Between the tokens of a sequence.",
            registry=r, buckets=_PASS_S,
        )  # fmt: skip
        self.request_s = Histogram(
            "lockstep_request_seconds", "From a request's arrival to the end of its answer.",
            ("endpoint",), registry=r, buckets=_WAIT_S,
        )  # fmt: skip

    def text(self) -> bytes:
        """All of them as Prometheus reads them."""
        return generate_latest(self.registry)
