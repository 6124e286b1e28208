"""`lockstep serve` as a process: where it listens, what it refuses, how it ends."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import openai
import pytest
from server_harness import CONTEXT, write_hf

from lockstep.cli.main import main
from lockstep.engine import model as engine_model

pytestmark = pytest.mark.usefixtures("quick_builds")

SERVE = "import sys; from lockstep.cli.main import main; sys.exit(main(['serve', *sys.argv[1:]]))"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf(tmp_path_factory.mktemp("models") / "tiny")


@contextmanager
def serving(model: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A process that serves, and what it said."""
    command = [sys.executable, "-c", SERVE, str(model), "--port", "0", "--json", *flags]
    environment = {key: value for key, value in os.environ.items() if key != "LOCKSTEP_API_KEY"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        try:
            lines = ""
            while not lines.endswith("\n}\n"):
                line = process.stdout.readline()
                assert line, process.stderr.read() if process.stderr else ""
                lines += line
            yield process, json.loads(lines)
        finally:
            process.kill()


def client_of(said: dict[str, Any], key: str = "any") -> openai.OpenAI:
    """OpenAI's client for a process that serves."""
    return openai.OpenAI(base_url=said["url"], api_key=key, max_retries=0)


def ask(client: openai.OpenAI, **more: Any) -> Any:
    """A completion of the tiny model."""
    return client.completions.create(model="tiny", prompt="the cat", **more)


def test_it_says_where_answers_and_ends_with_0_when_it_has_drained(model: Path) -> None:
    # An end token that never comes, so that the answer takes as long as its tokens.
    long: Any = {"max_tokens": 150, "stream": True, "n": 8, "extra_body": {"ignore_eos": True}}
    with serving(model, "--threads", "1") as (process, said):
        assert (said["model"], said["slots"], said["context"]) == ("tiny", 4, CONTEXT)
        with client_of(said) as client:
            assert ask(client, max_tokens=3).usage.completion_tokens <= 3
            stream = ask(client, **long)
            parts = [next(stream)]
            process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + 60
            refused = None
            while refused is None and process.poll() is None and time.monotonic() < deadline:
                try:
                    ask(client, max_tokens=1)
                except openai.InternalServerError as error:
                    refused = error
            parts += list(stream)
        assert refused is not None
        assert (refused.status_code, refused.code) == (503, "draining")
        ends = [c.finish_reason for part in parts for c in part.choices if c.finish_reason]
        assert ends == ["length"] * 8
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_a_second_signal_cuts_answers_off(model: Path) -> None:
    with serving(model, "--threads", "1") as (process, said):
        body = {"prompt": ["the"] * 2000, "max_tokens": 150, "ignore_eos": True}
        connection = http.client.HTTPConnection(said["url"].split("/")[2], timeout=120)
        connection.request("POST", "/v1/completions", json.dumps(body),
                           {"Content-Type": "application/json"})  # fmt: skip
        reading = threading.Thread(target=_swallow, args=(connection,))
        reading.start()
        while slots_used(said) == 0:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert process.poll() is None, "it waits for the answer"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
        reading.join(60)


def slots_used(said: dict[str, Any]) -> float:
    """How many slots of a process hold a sequence, by its metrics."""
    with urllib.request.urlopen(f"http://{said['url'].split('/')[2]}/metrics") as answer:
        found = re.search(r"^lockstep_slots_used (\S+)$", answer.read().decode(), re.MULTILINE)
    assert found is not None
    return float(found[1])


def _swallow(connection: http.client.HTTPConnection) -> None:
    with suppress(http.client.HTTPException, OSError):
        connection.getresponse().read()


def test_the_key_is_asked_for_and_a_name_is_taken(model: Path) -> None:
    flags = ("--api-key", "secret", "--name", "mine", "--chat-template", "plain")
    with serving(model, *flags) as (process, said):
        assert said["model"] == "mine"
        talk: Any = [{"role": "user", "content": "the"}]
        with client_of(said) as client, pytest.raises(openai.AuthenticationError):
            client.chat.completions.create(model="mine", messages=talk)
        with client_of(said, "secret") as client:
            answer = client.chat.completions.create(model="mine", messages=talk, max_tokens=3)
            assert answer.choices[0].message.role == "assistant"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "example.org"])
def test_others_are_not_let_in_without_a_key(
    model: Path, host: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOCKSTEP_API_KEY", raising=False)
    assert main(["serve", str(model), "--host", host]) == 2
    assert "which other machines can reach" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["", " ", "key ", "key\r", "a\nb", "a\x7f", "\udcff"])
def test_a_key_that_no_request_can_bring_is_refused(
    key: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its server would answer nobody."""
    assert main(["serve", str(model), "--port", "0", "--api-key", key]) == 2
    assert "--api-key: expected a key" in capsys.readouterr().err


def test_a_port_that_is_taken_is_said_before_the_model_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lockstep.server.listen import bind

    with bind("127.0.0.1", 0) as bound:
        port = str(bound.getsockname()[1])
        assert main(["serve", str(tmp_path / "nothing"), "--port", port]) == 3
    assert f"127.0.0.1:{port}: expected an address to listen on" in capsys.readouterr().err


def test_a_template_that_is_not_there_is_said_before_the_model_is_loaded(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_model, "available_bytes", lambda: 1000)
    flags = ("--port", "0", "--chat-template")
    assert main(["serve", str(model), *flags, "chatmll"]) == 2
    assert "did you mean chatml?" in capsys.readouterr().err
    assert main(["serve", str(model), *flags, "chatml"]) == 5, "it would not be loaded"
