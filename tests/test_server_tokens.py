"""`/tokenize`: the ids, how much it takes at once, and who waits for it."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import sentencepiece
from server_harness import Running, post, running, tiny_served
from tokenizer_files import sentencepiece_metadata, sentencepiece_model

from lockstep.server.service import Limits
from lockstep.tokenizers import GGUFTokenizer

pytestmark = pytest.mark.usefixtures("quick_builds")

MOST = Limits().max_text_bytes
LARGE = 3  # texts at once


@pytest.fixture(scope="module")
def spm() -> bytes:
    return sentencepiece_model(gemma=True)


@pytest.fixture(scope="module")
def server(spm: bytes) -> Iterator[Running]:
    """A server whose tokenizer is the slowest there is: it merges in Python."""
    tokenizer = GGUFTokenizer.read(sentencepiece_metadata(spm, gemma=True))
    with running(replace(tiny_served(), tokenizer=tokenizer)) as server:
        yield server


def test_the_ids_are_those_of_sentencepiece(server: Running, spm: bytes) -> None:
    theirs = sentencepiece.SentencePieceProcessor(model_proto=spm)
    text = "hello world, 日本 😀 <table>\n\n" * 3
    for begins in (False, True):
        body = {"prompt": text, "add_special_tokens": begins}
        status, document, _ = post(server, "/tokenize", json.dumps(body))
        assert status == 200
        assert document["tokens"] == theirs.encode(text, add_bos=begins)
        assert document["count"] == len(document["tokens"])


@pytest.mark.parametrize("text", ["a" * (MOST + 1), "é" * (MOST // 2 + 1)])
def test_a_text_that_would_take_too_long_is_refused(server: Running, text: str) -> None:
    status, document, _ = post(server, "/tokenize", json.dumps({"prompt": text}))
    error = document["error"]
    assert (status, error["param"], error["code"]) == (400, "prompt", "text_too_large")
    assert f"at most {MOST} bytes" in error["message"]


def test_large_texts_stop_nobody(server: Running) -> None:
    body = json.dumps({"prompt": "ab" * (MOST // 2)})  # one word
    completion = json.dumps({"prompt": [5, 6, 7], "max_tokens": 4, "ignore_eos": True})
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    n_healthy = n_completed = 0
    with ThreadPoolExecutor(LARGE) as pool:
        large = [pool.submit(post, server, "/tokenize", body) for _ in range(LARGE)]
        while not all(answer.done() for answer in large):
            connection.request("GET", "/health")
            n_healthy += connection.getresponse().read() == b'{"status":"ok"}'
            n_completed += post(server, "/v1/completions", completion)[0] == 200
    connection.close()
    assert [answer.result()[0] for answer in large] == [200] * LARGE
    # Each would have to wait for a whole text if the event loop did the work.
    assert min(n_healthy, n_completed) > 2 * LARGE
