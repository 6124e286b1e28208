"""`lockstep run`: answers, pipes and chats at a terminal, with a model that transformers wrote."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pexpect = pytest.importorskip("pexpect")

from chat_model import TEMPLATES, write_chat_model  # noqa: E402
from tokenizer_files import ask_llama_cpp, bpe_metadata, write_gguf  # noqa: E402

from lockstep.cli.main import main  # noqa: E402
from lockstep.cli.run_display import Display  # noqa: E402
from lockstep.engine.streaming import split_thinking  # noqa: E402
from lockstep.tokenizers.pre_tokenizers import pre_tokenizer  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("quick_builds")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("run") / "tiny")


@pytest.fixture(scope="module")
def answered(model: Path) -> tuple[list[int], str, str]:
    """What transformers answers to hello, greedily: prompt ids, text and 24 new ids as text."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    theirs = transformers.Qwen3ForCausalLM.from_pretrained(model, dtype=torch.float32)
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    prompt = tokenizer.apply_chat_template(
        asked, add_generation_prompt=True, enable_thinking=False, return_dict=False
    )
    made = theirs.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)
    ids = made[0, len(prompt) :].tolist()
    return prompt, tokenizer.decode(ids, skip_special_tokens=True), ids


CTX = ("--ctx", "256")  # the same for most: another one is another program to compile
ASK = ("-n", "24", "--system", "Be brief.", "--think", "off", *CTX)


def test_an_answer_is_that_of_transformers(
    model: Path, answered: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt, text, ids = answered
    assert main(["run", str(model), "-p", "hello", *ASK, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["tokens"] == ids
    assert document["text"] == text
    assert document["prompt_tokens"] == len(prompt)
    assert document["finish_reason"] == "length"
    assert document["tok_s"] > 0
    assert main(["run", str(model), "-p", "hello", *ASK]) == 0
    assert capsys.readouterr().out.removesuffix("\n") == text.removesuffix("\n")


def test_an_answer_of_a_gguf_file_is_that_of_llama_cpp(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template = (TEMPLATES / "qwen25.jinja").read_text()
    facts = bpe_metadata(pre_tokenizer("qwen2"), "qwen2")
    path = write_gguf(tmp_path / "tiny.gguf", facts, template)
    said = "What's 2+2? é😀"
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": said}]
    body = {"messages": asked, "max_tokens": 24, "temperature": 0}
    (theirs,) = ask_llama_cpp(path, [("/v1/chat/completions", body)])
    flags = ("--system", "Be brief.", "-n", "24", "--kv", "f32", *CTX)
    assert main(["run", str(path), "-p", said, *flags, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["text"] == theirs["choices"][0]["message"]["content"]
    assert document["prompt_tokens"] == theirs["usage"]["prompt_tokens"]


def test_a_prompt_may_come_through_a_pipe(
    model: Path, answered: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    assert main(["run", str(model), *ASK, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == answered[2]
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert main(["run", str(model), *ASK]) == 2
    assert "expected a prompt, got none" in capsys.readouterr().err


def test_bytes_that_are_no_text_are_a_fault_of_the_input(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the locale in which Python lets them pass as halves of characters."""
    done = subprocess.run(
        [sys.executable, "-m", "lockstep.cli.main", "run", str(model), *ASK], input=b"a\xffb",
        env={**os.environ, "LC_ALL": "C.UTF-8"}, capture_output=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert b"standard input: expected UTF-8, got byte 0xFF at 1" in done.stderr
    assert bytes(model) not in done.stderr
    for flags in (("-p", "a\udcff"), ("-p", "a", "--system", "\udcff"), ("--stop", "\udcff")):
        assert main(["run", str(model), *flags]) == 2
        assert "expected UTF-8, got other bytes" in capsys.readouterr().err


def test_raw_goes_on_from_the_text_and_its_control_tokens(
    model: Path, answered: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    assert main(["run", str(model), "-p", text, "--raw", "-n", "24", *CTX, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["tokens"], document["prompt_tokens"]) == (answered[2], len(answered[0]))


def test_a_file_or_a_name_takes_the_place_of_the_models_template(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def prompt_tokens(*flags: str) -> int:
        assert main(["run", str(model), "-p", "hello", "-n", "1", *CTX, "--json", *flags]) == 0
        count: int = json.loads(capsys.readouterr().out)["prompt_tokens"]
        return count

    (tmp_path / "own.jinja").write_text("{{ messages[0].content }}")
    raw = prompt_tokens("--raw")
    assert prompt_tokens("--chat-template", str(tmp_path / "own.jinja")) == raw
    assert prompt_tokens("--chat-template", "chatml") == prompt_tokens() > raw
    assert main(["run", str(model), "-p", "x", "--chat-template", "chatmll"]) == 2
    assert "did you mean chatml?" in capsys.readouterr().err


def test_a_model_without_a_template_says_so_and_goes_on(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    bare = tmp_path / "bare"
    shutil.copytree(model, bare)
    (bare / "chat_template.jinja").unlink()
    assert main(["run", str(bare), "-p", "hello", "-n", "3", *CTX]) == 0
    assert "no chat template" in capsys.readouterr().err
    for flags in (["--system", "x"], ["--think", "hide"]):
        assert main(["run", str(bare), "-p", "hello", *flags]) == 2
        assert "expected a chat template" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [("--temperature", "1e-310"), ("--temperature", "0.5", "--repeat-penalty", "1e-308")],
)
def test_settings_at_the_edge_of_numbers_are_answered(
    flags: tuple[str, ...], model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("-p", "hello", "-n", "4", "--ignore-eos", *CTX, *flags, "--json")
    assert main(["run", str(model), *asked]) == 0
    assert len(json.loads(capsys.readouterr().out)["tokens"]) == 4


@pytest.mark.parametrize(
    ("flags", "culprit"),
    [
        (["--raw", "--system", "x"], "--system"),
        (["--raw", "--chat-template", "chatml"], "--chat-template"),
        (["--raw", "--think", "off"], "--think"),
        (["--stop", ""], "--stop"),
        (["--temperature", "-1"], "temperature"),
        (["-p", "hello " * 300], "prompt: expected 1 to 255 tokens"),
        (["--ctx", "1"], "1 is not in the range x>=2"),
        (["--think", "perhaps"], "--think"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    flags: list[str], culprit: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(model), "-p", "hello", *CTX, *flags]) == 2
    said = capsys.readouterr().err
    assert culprit in said
    assert "hint" in said
    assert "Traceback" not in said


def test_no_such_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(tmp_path / "none.gguf"), "-p", "x"]) in (2, 4)
    assert "none.gguf" in capsys.readouterr().err


@pytest.fixture
def chat(model: Path) -> Iterator[Callable[..., Any]]:
    """Starts a chat at a pseudo-terminal."""
    children = []

    def start(*flags: str) -> Any:
        command = ["-m", "lockstep.cli.main", "run", str(model), *flags]
        child = pexpect.spawn(
            sys.executable, command, encoding="utf-8", timeout=300, echo=False,
            env={**os.environ, "TERM": "dumb", "NO_COLOR": "1", "LC_ALL": "C.UTF-8"},
            dimensions=(50, 200),
        )  # fmt: skip
        children.append(child)
        child.expect("/help lists the commands")
        child.expect("> $")
        return child

    yield start
    for child in children:
        child.close(force=True)


def ask(child: Any, line: str) -> str:
    """What is said to a line, up to the next prompt."""
    child.sendline(line)
    child.expect("\r\n> $")
    said: str = child.before
    return said.replace("\r\n", "\n").strip("\n")


def test_a_chat_answers_and_reads_only_what_is_new(
    chat: Callable[..., Any], answered: Any, tmp_path: Path
) -> None:
    child = chat(*ASK)
    first = ask(child, "hello")
    cut = "(cut at the most tokens, see /set max-tokens)"
    assert first.split() == f"{answered[1]} {cut}".split()
    assert f"prompt: {len(answered[0])} tokens, 0 of them read before" in ask(child, "/stats")
    assert ask(child, "/retry") == first, "greedy answers are the same again"
    assert f"{len(answered[0]) - 1} of them read before" in ask(child, "/stats")
    saved = tmp_path / "chat.json"
    assert "3 messages" in ask(child, f"/save {saved}")
    messages = json.loads(saved.read_text())["messages"]
    assert [m["role"] for m in messages] == ["system", "user", "assistant"]
    assert messages[2]["content"].split() == answered[1].split()
    assert "expected a new file" in ask(child, f"/save {saved}")
    ask(child, "and now?")
    second = ask(child, "/stats")
    assert "cleared" in ask(child, "/clear")
    assert ask(child, "hello") == first
    assert "3 messages" in ask(child, f"/load {saved}")
    ask(child, "and now?")
    assert second.splitlines()[0] == ask(child, "/stats").splitlines()[0], "the same conversation"
    child.sendline("/exit")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_a_chat_is_told_what_to_change(chat: Callable[..., Any], tmp_path: Path) -> None:
    halved = tmp_path / "halved.json"  # a text that no file can hold
    halved.write_text(r'{"messages": [{"role": "user", "content": "\ud800"}]}')
    child = chat("-n", "4", *CTX)
    assert "/system" in ask(child, "/help")
    assert "no system message" in ask(child, "/system")
    assert "set" in ask(child, "/system Be kind.")
    assert "Be kind." in ask(child, "/system")
    assert "max-tokens 4" in ask(child, "/set")
    assert ask(child, "/set max-tokens 2") == "max-tokens 2"
    ask(child, "hi")
    assert "answer: 2 tokens" in ask(child, "/stats")
    for line, culprit in (
        ("/set warmth 2", "expected one of temperature"),
        ("/set temperature hot", "expected a number"),
        ("/set temperature nan", "temperature: expected 0 to 100"),
        ("/set think maybe", "expected one of show, hide, off"),
        ("/set top-p 2", "/set top-p: expected more than 0, at most 1, got 2.0"),
        ("/set top-p 2", "give another number"),
        ("/hepl", "did you mean help?"),
        ("/load /none.json", "none.json"),
        ("/load ~no-such-user/chat.json", "expected a home directory"),
        (f"/load {__file__}", "load a file that /save wrote"),
        (f"/load {halved}", "load a file that /save wrote"),
        ("/save", "expected the name of a file"),
    ):
        assert culprit in ask(child, line), line
    os.write(child.child_fd, b"a\xffb\n")
    child.expect("line: expected UTF-8")
    child.expect("> $")
    assert "answer" not in ask(child, "//help me"), "two slashes are a text that begins with one"
    child.sendline("one\\")
    child.expect(r"\. $")
    ask(child, "two")
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_ctrl_c_stops_the_answer_and_not_the_program(chat: Callable[..., Any]) -> None:
    child = chat("--ignore-eos", "--ctx", "4096", "--temperature", "1.0")
    child.sendline("hello")
    child.expect(r"\w+")
    child.sendintr()
    child.expect(r"\(stopped\)\r\n> $")
    assert "answer: " in ask(child, "/stats")
    for _ in range(20):  # CPython's readline misses a signal between the prompt and its wait
        child.sendintr()
        if child.expect(["leaves", pexpect.TIMEOUT], timeout=5) == 0:
            break
    else:
        pytest.fail("Ctrl-C at the prompt does not say how to leave")
    child.expect("> $")
    assert "max-tokens 3" in ask(child, "/set max-tokens 3"), "it goes on"
    ask(child, "more")
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


@pytest.mark.parametrize(
    ("text", "begun", "thinking", "answer"),
    [
        ("<think>\nhm\n</think>\n\nyes", False, "hm\n", "yes"),
        ("\n<think>a</think>b", False, "a", "b"),
        ("hm</think>\nyes </think> <think>", True, "hm", "yes </think> <think>"),
        ("no thinking <think>x</think>", False, "", "no thinking <think>x</think>"),
        ("<think>for ever", False, "for ever", ""),
        ("<thin", False, "", "<thin"),
        ("\n\n  text", False, "", "\n\n  text"),
        ("<think></think>ok", False, "", "ok"),
        ("", False, "", ""),
        ("a < b </thin", True, "a < b </thin", ""),
    ],
)
@pytest.mark.parametrize("width", [1, 2, 3, 100])
def test_thinking_is_told_from_the_answer(
    text: str, begun: bool, thinking: str, answer: str, width: int
) -> None:
    pieces = [text[i : i + width] for i in range(0, len(text), width)]
    found: dict[bool, str] = {True: "", False: ""}
    for thinks, piece in split_thinking(pieces, begun=begun):
        assert piece
        found[thinks] += piece
    assert (found[True], found[False]) == (thinking, answer)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_thinking_dimmed_and_no_controls(monkeypatch: pytest.MonkeyPatch) -> None:
    def shown(stream: io.StringIO, shows: bool) -> str:
        display = Display(stream, shows_thinking=shows)
        for thinks, text in ((True, "hm"), (False, "a\x1b[31m\u202e\n👩\u200d🚀")):
            display.show(thinks, text)
        display.end()
        return stream.getvalue()

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert shown(Terminal(), True) == "\x1b[2mhm\n\x1b[0m\na\\x1b[31m\\u202e\n👩\u200d🚀\n"
    assert shown(io.StringIO(), True) == "<think>\nhm\n</think>\na\x1b[31m\u202e\n👩\u200d🚀\n"
    assert shown(Terminal(), False) == "a\\x1b[31m\\u202e\n👩\u200d🚀\n"
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in shown(Terminal(), True)


def test_every_command_is_in_the_help() -> None:
    from lockstep.cli.run_commands import COMMANDS, Commands

    for name, text in COMMANDS.items():
        assert text.startswith(f"/{name}")
        assert hasattr(Commands, f"_{name}")
