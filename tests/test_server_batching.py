"""Many requests in one pass: the same bits as alone, memory that is reused, clients that leave."""

from __future__ import annotations

import asyncio
import http.client
import json
import math
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from server_harness import NARROW, SHAPE, Running, running, tiny_served

from lockstep.server.chooser import Chooser
from lockstep.server.generation import Generation
from lockstep.server.metrics import Metrics
from lockstep.server.scheduler import Job, QueueFull, Scheduler
from lockstep.server.sequence import Sequence
from lockstep.server.served import Served
from lockstep.server.service import Limits
from lockstep.server.slots import Slots

pytestmark = pytest.mark.usefixtures("quick_builds")

LONG = "the cat sat né € " * 12

REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("chat/completions", {"messages": [{"role": "user", "content": "the cat"}], "temperature": 0,
                          "max_tokens": 20, "logprobs": True, "top_logprobs": 3}),
    ("chat/completions", {"messages": [{"role": "system", "content": LONG},
                                       {"role": "user", "content": "sat"}],
                          "temperature": 0, "max_tokens": 9, "logprobs": True}),
    ("completions", {"prompt": LONG, "temperature": 0, "max_tokens": 30, "logprobs": 2}),
    ("completions", {"prompt": ["né", "the cat"], "temperature": 0.9, "seed": 11, "n": 3,
                     "max_tokens": 15, "logprobs": 1, "top_p": 0.9, "top_k": 50}),
    ("completions", {"prompt": LONG, "max_tokens": 1, "echo": True, "logprobs": 5,
                     "temperature": 0}),
    ("completions", {"prompt": "<svg>", "max_tokens": 40, "seed": 2, "logprobs": 1,
                     "response_format": {"type": "json_object"}}),
    ("completions", {"prompt": "<svg>", "max_tokens": 25, "seed": 4, "frequency_penalty": 0.6,
                     "repeat_penalty": 1.3, "logit_bias": {"9": 2}, "stop": ["a"], "logprobs": 0}),
    ("embeddings", {"input": [LONG, "sat"], "pooling": "mean"}),
    ("embeddings", {"input": ["né €", "<svg>"]}),
]  # fmt: skip


def ask(server: Running, path: str, body: dict[str, Any]) -> Any:
    """What is said, without what names the moment or the cache."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", f"/v1/{path}", json.dumps(body),
                       {"Content-Type": "application/json"})  # fmt: skip
    answer = connection.getresponse()
    document = json.loads(answer.read())
    connection.close()
    assert answer.status == 200, document
    for volatile in ("id", "created"):
        document.pop(volatile, None)
    document["usage"].pop("prompt_tokens_details", None)
    return document


def at_once(server: Running, requests: list[tuple[str, dict[str, Any]]]) -> list[Any]:
    """The answers to requests that are sent at the same time."""
    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(lambda request: ask(server, *request), requests))


@pytest.fixture(scope="module")
def alone() -> list[Any]:
    """Each answer of a server with one slot, one thread and small passes, one after another."""
    with running(tiny_served(NARROW, threads=1)) as server:
        return [ask(server, *request) for request in REQUESTS]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(tiny_served()) as server:
        yield server


def test_company_changes_no_bit_of_an_answer(server: Running, alone: list[Any]) -> None:
    assert at_once(server, REQUESTS * 3) == alone * 3
    assert at_once(server, REQUESTS[::-1]) == alone[::-1], "with other prefixes in the slots"
    passes = server.metric("pass_sequences_count")
    below = server.metric("pass_sequences_bucket", le="2.0")
    assert passes - below > 20, "hardly any pass had three sequences: this would prove nothing"


def test_an_answer_that_depends_on_its_company_is_found(alone: list[Any]) -> None:
    served = tiny_served()
    read = served.session.read

    def leaking(pieces: Any) -> Any:
        rows = read(pieces)
        for row in rows:
            row += 1e-6 * (len(pieces) - 1) * abs(row)  # the last bits of float32
        return rows

    served.session.read = leaking  # type: ignore[method-assign]
    with running(served) as server:
        assert [ask(server, *request) for request in REQUESTS[:3]] == alone[:3]
        assert at_once(server, REQUESTS * 3) != alone * 3


def test_a_hundred_requests_at_once_are_all_answered(server: Running) -> None:
    async def all_of_them() -> list[str]:
        url = f"{server.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0) as client:
            asked = [
                client.completions.create(
                    model="tiny", prompt=f"the cat {i % 10}", temperature=0, max_tokens=5
                )
                for i in range(100)
            ]
            return [answer.choices[0].text for answer in await asyncio.gather(*asked)]

    texts = asyncio.run(all_of_them())
    assert texts == texts[:10] * 10
    assert len(set(texts)) > 5


def test_what_a_slot_has_read_is_not_read_again(server: Running) -> None:
    def cached(prompt: Any, **more: Any) -> tuple[int, str]:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any") as client:
            answer = client.completions.create(
                model="tiny", prompt=prompt, temperature=0, max_tokens=4, **more
            )
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        return answer.usage.prompt_tokens_details.cached_tokens or 0, answer.choices[0].text

    ids = list(range(40, 100))
    assert cached(ids)[0] == 0
    n, text = cached(ids)
    assert n == 59, "all but the last, after which logits are wanted"
    assert cached([*ids[:30], *range(140, 150)])[0] == 30
    assert cached([*ids[:30], 7, 8, 9], echo=True, logprobs=0)[0] == 0, "a prompt that is scored"
    assert cached([*ids[:5], *range(200, 230)])[0] == 0, "five tokens are not worth a slot"
    assert cached(ids)[1] == text


def test_a_state_that_cannot_forget_is_only_gone_on_from() -> None:
    session = tiny_served(NARROW).session
    session.rewinds = False  # as that of a model with states
    slots, ids = Slots(session), list(range(40, 100))

    def used(wanted: list[int]) -> int:
        slot, kept = slots.take(wanted, reuse=True)
        session.prefill(wanted[kept:], slot)
        slots.contents[slot] += wanted[kept:]
        slots.give_back(slot)
        return kept

    assert [used(ids), used([*ids, 5]), used(ids)] == [0, 60, 0]
    assert used([*ids[:-1], 9]) == 0


def slowed(served: Served, seconds: float) -> Served:
    """The same model, with a pass that takes as long as one of a larger model."""
    read = served.session.read

    def slowly(pieces: Any) -> Any:
        time.sleep(seconds)
        return read(pieces)

    served.session.read = slowly  # type: ignore[method-assign]
    return served


def soon(holds: Callable[[], bool]) -> None:
    """Waits until something holds."""
    ends = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < ends, "not within a minute"
        time.sleep(0.01)


def begin(server: Running, body: dict[str, Any], *, path: str = "completions") -> socket.socket:
    """A connection on which a request was sent and nothing was read."""
    text = json.dumps({"prompt": "the cat", "max_tokens": 150, **body}).encode()
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    head = f"POST /v1/{path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(text)}\r\n\r\n"
    connection.sendall(head.encode() + text)
    return connection


@pytest.mark.parametrize(
    "body", [{"stream": True}, {}, {"n": 9}], ids=["stream", "whole", "queued"]
)
def test_a_client_that_leaves_frees_its_slots(body: dict[str, Any]) -> None:
    with running(slowed(tiny_served(), 0.2)) as server:
        connection = begin(server, body)
        soon(lambda: server.metric("slots_used") > 0)
        if body == {"stream": True}:
            connection.recv(1000)
        connection.close()
        began = time.monotonic()
        soon(lambda: server.metric("slots_used") == 0)
        assert time.monotonic() - began < 15, "150 passes take 30 seconds"
        assert server.metric("cancelled_requests_total") == 1
        assert server.metric("waiting_requests") == 0


def test_a_client_that_does_not_read_holds_nobody_up() -> None:
    with running(slowed(tiny_served(), 0.002)) as server:
        lazy = begin(server, {"stream": True, "max_tokens": 100})
        soon(lambda: server.metric("slots_used") > 0)
        assert ask(server, "completions", {"prompt": "sat", "max_tokens": 2})["choices"]
        soon(lambda: server.metric("slots_used") == 0)
        received = b""
        while b"[DONE]" not in received:
            received += lazy.recv(1 << 16)
        lazy.close()


def test_a_body_that_does_not_come_is_given_up() -> None:
    with running(tiny_served(), Limits(body_s=0.3)) as server:
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{"
        )
        assert b" 408 " in connection.recv(4096).split(b"\r\n")[0]
        connection.close()


def test_a_full_queue_says_when_to_come_back() -> None:
    served = slowed(tiny_served(NARROW), 0.05)
    with running(served, Limits(max_queue=1)) as server:
        body = {"prompt": "the", "max_tokens": 40, "ignore_eos": True}
        ask(server, "completions", body)  # two seconds
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        connection.request("GET", "/health")  # which is quick, and says nothing of that
        connection.getresponse().read()
        connection.close()
        first = begin(server, {})
        soon(lambda: server.metric("slots_used") == 1)
        second = begin(server, {})
        soon(lambda: server.metric("waiting_requests") == 1)
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        connection.request("POST", "/v1/completions", b'{"prompt": "a"}')
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["error"]["code"]) == (429, "queue_full")
        assert 2 <= int(answer.headers["Retry-After"]) <= 60
        connection.close()
        first.close()
        soon(lambda: server.metric("waiting_requests") == 0)
        second.close()


def test_a_request_waits_only_where_no_slot_is_free() -> None:
    served = tiny_served()
    scheduler = Scheduler(served.session, lambda news: None, max_waiting=1, metrics=Metrics())

    def submit() -> None:
        sequence = Sequence(0, Generation(prompt=(1,)), served.tokenizer)
        scheduler.submit(Job((sequence,), deadline=math.inf, sink=lambda events: None))

    for _ in range(SHAPE.slots + 1):  # nothing runs yet
        submit()
    with pytest.raises(QueueFull):
        submit()


def test_an_answer_that_takes_too_long_is_ended() -> None:
    endless: Any = {"model": "tiny", "prompt": "the", "max_tokens": 150}
    always = {"ignore_eos": True}  # else a drawn end token comes first, once in many runs
    with running(slowed(tiny_served(), 0.05), Limits(request_s=0.3)) as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
            with pytest.raises(openai.APIStatusError) as caught:
                client.completions.create(**endless, extra_body=always)
            assert (caught.value.status_code, caught.value.code) == (504, "timeout")
            stream = client.completions.create(**endless, extra_body=always, stream=True)
            with pytest.raises(openai.APIError, match="longer than allowed"):
                list(stream)
        assert server.metric("slots_used") == 0


def test_a_pass_that_fails_ends_its_requests_and_no_others() -> None:
    served = tiny_served()
    body = {"prompt": "the cat", "max_tokens": 5, "temperature": 0}
    read, fails = served.session.read, [True]

    def broken(pieces: Any) -> Any:
        if fails.pop() if fails else False:
            raise RuntimeError("a planted fault")
        return read(pieces)

    with running(served) as server:
        expected = ask(server, "completions", body)
        served.session.read = broken  # type: ignore[method-assign]
        with pytest.raises(AssertionError, match="internal_error"):
            ask(server, "completions", body)
        assert ask(server, "completions", body) == expected


def test_logits_that_are_no_numbers_end_one_request() -> None:
    served = tiny_served()
    read = served.session.read

    def poisoned(pieces: Any) -> Any:
        rows = read(pieces)
        for piece, row in zip(pieces, rows, strict=True):
            if 7 in piece.ids:
                row[...] = float("nan")
        return rows

    served.session.read = poisoned  # type: ignore[method-assign]
    with running(served) as server:
        body = {"prompt": [8, 9], "max_tokens": 3, "temperature": 0, "logit_bias": {"7": -100}}
        expected = ask(server, "completions", body)
        with pytest.raises(AssertionError, match="generation_failed"):
            ask(server, "completions", body | {"prompt": [8, 7]})
        assert ask(server, "completions", body) == expected


EDGES: list[dict[str, Any]] = [
    {"temperature": 1e-310}, {"temperature": 5e-324}, {"temperature": 100, "top_p": 1e-300},
    {"temperature": 0.5, "repeat_penalty": 1e-308}, {"temperature": 0, "repeat_penalty": 5e-324},
]  # fmt: skip


def test_settings_at_the_edge_of_numbers_are_answered_beside_others(
    server: Running, alone: list[Any]
) -> None:
    edges = [("completions", {"prompt": "the cat", "max_tokens": 4} | edge) for edge in EDGES]
    found = at_once(server, [*edges, *REQUESTS])
    assert found[len(edges) :] == alone
    greedy = ask(server, "completions", {"prompt": "the cat", "max_tokens": 4, "temperature": 0})
    assert [answer["choices"] for answer in found[:2]] == [greedy["choices"]] * 2


@pytest.mark.parametrize("step", ["__init__", "choose"])
def test_a_sequence_that_fails_ends_its_own_request_alone(
    step: str, server: Running, alone: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, reached = getattr(Chooser, step), []

    def broken(self: Any, first: Any, *more: Any) -> Any:
        result = whole(self, first, *more)
        if self._sampler.sampling.seed == 666:
            reached.append(step)
            raise IndexError("a planted fault")
        return result

    monkeypatch.setattr(Chooser, step, broken)
    body = {"prompt": ["né", "the", "sat"], "max_tokens": 9, "seed": 665, "n": 2}

    def fails(_: int) -> str:
        with pytest.raises(AssertionError) as caught:
            ask(server, "completions", body)
        return str(caught.value)

    with ThreadPoolExecutor(4) as pool:
        failing = pool.map(fails, range(4))
        assert at_once(server, REQUESTS * 2) == alone * 2
        assert all("internal_error" in said for said in failing)
    assert len(reached) >= 4
    soon(lambda: server.metric("slots_used") == 0)
    assert at_once(server, REQUESTS) == alone, "and every slot is as good as before"


def test_a_large_request_does_not_shut_out_a_small_one() -> None:
    with running(slowed(tiny_served(), 0.005)) as server, ThreadPoolExecutor(2) as pool:
        many = [[20 + i, 30] for i in range(40)]
        large = pool.submit(ask, server, "completions", {"prompt": many, "max_tokens": 20})
        soon(lambda: server.metric("slots_used") == SHAPE.slots)
        ask(server, "completions", {"prompt": "the", "max_tokens": 5})
        assert not large.done(), "the small one waited for one slot, not for forty prompts"
        assert len(large.result()["choices"]) == 40


def test_answers_go_on_while_a_long_prompt_is_read() -> None:
    served = tiny_served()
    read, passes = served.session.read, []

    def timed(pieces: Any) -> Any:
        rows = sum(len(piece.ids) for piece in pieces)
        time.sleep(0.006 * rows)
        passes.append((len(pieces), rows))
        return read(pieces)

    served.session.read = timed  # type: ignore[method-assign]
    with running(served) as server, ThreadPoolExecutor(2) as pool:
        long = {"prompt": "the", "max_tokens": 150, "ignore_eos": True}
        short = pool.submit(ask, server, "completions", long)
        soon(lambda: len(passes) > 3)
        ask(server, "completions", {"prompt": [9] * 180, "max_tokens": 1})
        mixed = [rows for n, rows in passes if n == 2]
        assert len(mixed) > 6
        assert max(mixed[1:]) <= 1 + 0.1 / 0.006, "a tenth of a second, learned from the first"
        assert short.result()["choices"][0]["finish_reason"] == "length"
