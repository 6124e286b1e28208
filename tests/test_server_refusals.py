"""What the server refuses: in the words of OpenAI, before it costs time, whoever asks."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from server_harness import CONTEXT, TALK, Running, post, running, tiny_served

from lockstep.server import exchange
from lockstep.server.service import Limits

pytestmark = pytest.mark.usefixtures("quick_builds")

LIMITS = Limits(max_body_bytes=4096, body_s=1.0, max_queue=200)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(tiny_served(), LIMITS) as server:
        yield server


WRONG: list[tuple[str, dict[str, Any], int, str | None, str | None]] = [
    ("chat/completions", {"messages": TALK, "max_tokens": "9"}, 400, "max_tokens", "invalid_value"),
    ("chat/completions", {"messages": TALK, "temperature": -1}, 400, "temperature", None),
    ("chat/completions", {"messages": TALK, "stream": "yes"}, 400, "stream", None),
    ("chat/completions", {"messages": TALK, "n": 0}, 400, "n", None),
    ("chat/completions", {"messages": TALK, "n": True}, 400, "n", None),
    ("chat/completions", {"messages": TALK, "stop": [1]}, 400, "stop", None),
    ("chat/completions", {"messages": TALK, "stop": ""}, 400, "stop", None),
    ("chat/completions", {"messages": TALK, "top_logprobs": 2}, 400, "top_logprobs", None),
    ("chat/completions", {"messages": TALK, "logit_bias": {"x": 1}}, 400, "logit_bias", None),
    ("chat/completions", {"messages": TALK, "logit_bias": {"300000": 1}}, 400, "logit_bias", None),
    ("chat/completions", {"messages": TALK, "grammar": "x"}, 400, "grammar", "invalid_grammar"),
    ("chat/completions", {"messages": TALK, "chat_template_kwargs": {"messages": []}}, 400,
     "chat_template_kwargs", None),
    ("chat/completions", {"messages": TALK, "chat_template_kwargs": {"self": 1}}, 400,
     "chat_template_kwargs", None),
    ("chat/completions", {"messages": TALK, "chat_template_kwargs": {"tools": 3}}, 400,
     "chat_template_kwargs", None),
    ("chat/completions", {"messages": TALK, "model": "x"}, 404, "model", "model_not_found"),
    ("chat/completions", {}, 400, "messages", "missing_required_parameter"),
    ("chat/completions", {"messages": []}, 400, "messages", None),
    ("chat/completions", {"messages": [{"role": "king", "content": ""}]}, 400,
     "messages.0.role", None),
    ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400,
     "messages.0.content", None),
    ("chat/completions", {"messages": TALK, "tools": [{"type": "function", "function": {}}]}, 400,
     "tools", None),
    ("completions", {"prompt": ""}, 400, "prompt", None),
    ("completions", {"prompt": []}, 400, "prompt", None),
    ("completions", {"prompt": [1, -1]}, 400, "prompt", None),
    ("completions", {"prompt": [[1], "x", 3]}, 400, "prompt", None),
    ("completions", {"prompt": "a", "suffix": "b"}, 400, "suffix", None),
    ("completions", {"prompt": "a", "best_of": 3}, 400, "best_of", None),
    ("completions", {"prompt": "a", "logprobs": True}, 400, "logprobs", None),
    ("completions", {"prompt": "z" * 400}, 400, "prompt", "context_length_exceeded"),
    ("completions", {"prompt": "a", "max_tokens": CONTEXT}, 400, "prompt",
     "context_length_exceeded"),
    ("embeddings", {"input": "a", "dimensions": 3}, 400, "dimensions", None),
    ("embeddings", {"input": "z" * 400}, 400, "input", "context_length_exceeded"),
    ("responses", {"input": "a"}, 404, None, "unknown_url"),
    ("completions", {"prompt": "a" * 5000}, 413, None, "body_too_large"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "code"), WRONG, ids=lambda value: str(value)[:40]
)
def test_what_is_wrong_is_said_as_openai_says_it(
    server: Running, path: str, body: dict[str, Any], status: int, param: str | None,
    code: str | None,
) -> None:  # fmt: skip
    found, document, _ = post(server, f"/v1/{path}", json.dumps(body))
    error = document["error"]
    assert (found, error["param"]) == (status, param), error
    assert code is None or error["code"] == code
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"temperature": -1}, "temperature: expected 0 or more, got -1"),
        ({"top_p": 0}, "top_p: expected more than 0, got 0"),
        ({"top_p": 1.5}, "top_p: expected at most 1, got 1.5"),
        ({"seed": 2**64}, f"seed: expected less than {2**64}, got {2**64}"),
        ({"max_tokens": "9"}, 'max_tokens: expected a whole number, got "9"'),
        ({"max_tokens": 1.5}, "max_tokens: expected a whole number, got 1.5"),
        ({"temperature": "hot"}, 'temperature: expected a number, got "hot"'),
        ({"stream": 1}, "stream: expected true or false, got 1"),
        ({"grammar": True}, "grammar: expected a text, got true"),
        ({"stream_options": 3}, "stream_options: expected an object, got 3"),
        ({"guided_choice": []}, "guided_choice: expected 1 or more items, got []"),
        ({"guided_choice": "a"}, 'guided_choice: expected a list, got "a"'),
        ({"stop": ["a"] * 17}, "stop: expected at most 16 items, got 17"),
        ({"messages": []}, "messages: expected 1 or more items, got []"),
        ({"messages": None}, "messages: expected a list, got null"),
        ({"messages": [{"content": "x"}]}, "messages.0.role: expected a value, got none"),
        ({"messages": [{"role": "user"}]}, "messages.0.content: expected a text, got none"),
        ({"messages": [{"role": "tool", "content": None}]},
         "messages.0.content: expected a text, got none"),
        ({"messages": [{"role": "king"}]},
         "messages.0.role: expected 'system', 'developer', 'user', 'assistant' or 'tool', "
         'got "king"'),
        ({"model": "x"}, "model: expected tiny, as GET /v1/models lists it, got x; "
         "`lockstep serve --name` gives it another name"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_it_says_what_was_expected_and_what_it_got(
    server: Running, body: dict[str, Any], said: str
) -> None:
    _, document, _ = post(
        server, "/v1/chat/completions", json.dumps({"messages": TALK, "max_tokens": 1} | body)
    )
    assert document["error"]["message"] == said


@pytest.fixture(scope="module")
def roomy() -> Iterator[Running]:
    """A server that takes large bodies."""
    with running(tiny_served()) as server:
        yield server


LARGE: list[tuple[str, dict[str, Any], str, str | None]] = [
    ("completions", {"prompt": "the cat " * 700_000}, "prompt", "context_length_exceeded"),
    ("completions", {"prompt": ["a", " " * 5_600_000]}, "prompt", "context_length_exceeded"),
    ("embeddings", {"input": "the cat " * 700_000}, "input", "context_length_exceeded"),
    ("chat/completions", {"messages": [{"role": "user", "content": "the cat " * 700_000}]},
     "messages", "context_length_exceeded"),
    ("completions", {"prompt": "a", "logit_bias": {"1" * 5000: 1}}, "logit_bias", None),
    ("completions", {"prompt": "a", "guided_choice": [f"c{i}" for i in range(50_000)]},
     "guided_choice", None),
    ("completions", {"prompt": "a", "guided_choice": ["a" * 200_000]}, "guided_choice",
     "invalid_grammar"),
    ("completions", {"prompt": "a", "regex": "a" * 5_000_000}, "regex", "invalid_grammar"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "param", "code"), LARGE, ids=lambda v: str(v)[:40])
def test_what_cannot_fit_is_refused_before_it_costs_time(
    roomy: Running, path: str, body: dict[str, Any], param: str, code: str | None
) -> None:
    began = time.monotonic()
    status, document, _ = post(roomy, f"/v1/{path}", json.dumps(body))
    seconds = time.monotonic() - began
    error = document["error"]
    assert (status, error["param"]) == (400, param), error
    assert code is None or error["code"] == code
    assert len(error["message"]) < 400
    assert seconds < 4, "some of these took 20 s"


def test_a_prompt_within_the_bound_of_its_bytes_is_counted(roomy: Running) -> None:
    _, document, _ = post(roomy, "/v1/completions", json.dumps({"prompt": "z" * 400}))
    assert "got 400 and 16 for the answer" in document["error"]["message"]


def test_a_variable_of_a_template_has_any_name_that_is_free(server: Running) -> None:
    for name, status in (("tokenizer", 200), ("add_generation_prompt", 200), ("messages", 400)):
        body = {"messages": TALK, "max_tokens": 1, "chat_template_kwargs": {name: False}}
        assert post(server, "/v1/chat/completions", json.dumps(body))[0] == status, name


def test_a_body_too_large_is_answered_to_whoever_sends_it_all_first(server: Running) -> None:
    large = b'{"prompt": "' + b"a" * (100 << 20) + b'"}'
    for body in (large, iter([large])):  # with its length, and in chunks of unknown number
        status, document, headers = post(server, "/v1/completions", body)
        assert (status, document["error"]["code"]) == (413, "body_too_large")
        assert headers["connection"] == "close"


def test_a_body_that_is_declared_too_large_is_not_waited_for(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "_LINGER_S", 0.3)
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n"
        connection.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
        began, said = time.monotonic(), b""
        while b"body_too_large" not in said:
            said += connection.recv(4096)
        assert said.startswith(b"HTTP/1.1 413 ")
        assert time.monotonic() - began < 1
        while connection.recv(4096):
            pass
        assert time.monotonic() - began < 20, "and then it ends"


@pytest.mark.parametrize(
    "body", ["", "{", "[]", "null", '{"prompt": "\\ud800"}', b"\xff", "[" * 3000]
)
def test_a_body_that_is_no_object_of_json_is_400(server: Running, body: str | bytes) -> None:
    status, document, _ = post(server, "/v1/completions", body)
    assert status == 400
    assert document["error"]["message"].startswith(("body: ", "prompt"))


@pytest.mark.parametrize("body", [{"logit_bias": {"1" * 3000: "x"}}, {"stop": ["a" * 3000, 1]}])
def test_what_was_wrong_is_repeated_in_short(server: Running, body: dict[str, Any]) -> None:
    found, document, _ = post(server, "/v1/completions", json.dumps({"prompt": "a"} | body))
    assert found == 400
    assert len(json.dumps(document)) < 600


def test_a_path_of_any_length_is_repeated_in_short(server: Running) -> None:
    status, document, _ = post(server, "/v1/" + "a" * 50_000, "{}")
    assert (status, document["error"]["code"]) == (404, "unknown_url")
    assert len(document["error"]["message"]) < 200


def test_another_content_type_method_or_host_is_refused(server: Running) -> None:
    body = json.dumps({"prompt": "a", "max_tokens": 1})
    assert post(server, "/v1/completions", body, Content_Type="text/plain")[0] == 415
    assert post(server, "/v1/models", body)[0] == 405
    status, document, _ = post(server, "/v1/completions", body, Host="evil.example:80")
    assert (status, document["error"]["code"]) == (403, "wrong_host")
    assert post(server, "/v1/completions", body, Host="localhost")[0] == 200


def test_no_other_site_is_let_in_by_default(server: Running) -> None:
    _, _, headers = post(server, "/v1/completions", "{}", Origin="https://evil.example")
    assert not [name for name in headers if name.lower().startswith("access-control")]


def test_a_key_is_asked_for_except_of_health() -> None:
    with running(tiny_served(), api_key="se€cret") as server:
        for key, status in (("se€cret", 200), ("secret", 401), ("", 401)):
            headers = {"Authorization": f"Bearer {key}".encode().decode("latin-1")} if key else {}
            body = json.dumps({"prompt": "a", "max_tokens": 1})
            found, document, _ = post(server, "/v1/completions", body, **headers)
            assert found == status
            assert status == 200 or document["error"]["type"] == "authentication_error"
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        for path, status in (("/health", 200), ("/metrics", 401), ("/v1/models", 401)):
            connection.request("GET", path)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == status, path
        connection.close()


def test_a_grammar_whose_error_would_take_minutes_to_place_is_refused_at_once() -> None:
    line = "a" * 100_000
    with running(tiny_served(), Limits()) as roomy:
        body = json.dumps({"prompt": "a", "grammar": line})
        connection = http.client.HTTPConnection("127.0.0.1", roomy.port, timeout=10)
        connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
        answer = connection.getresponse()
        assert answer.status == 400
        said = json.loads(answer.read())["error"]["message"]
        assert said.startswith("grammar: expected lines of at most"), said
        connection.close()
