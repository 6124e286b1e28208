"""`lockstep verify` against claim files that were made to harm: refused, and nothing executed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hostile_runs import HEAD, Said, bounds, pair, refused
from safetensors.numpy import save_file
from verify_pair import CLAIMS, Pair, make_pair

from lockstep.cli.main import main

__all__ = ["bounds", "pair"]  # fixtures


def rule(target: str, source: str, *rest: str) -> str:
    head = f"[[claim]]\ngroup = 'g'\ntarget = '{target}'\nsource = '{source}'\n"
    return head + "\n".join(rest) + "\n"


def steps(*texts: str) -> str:
    norm = f"transform = [{', '.join(map(repr, texts))}]"
    return rule("final_norm", "model.norm.weight", norm)


def fact(text: str) -> str:
    return f'[facts]\nn = {{ value = "{text}" }}\n'


CLAIM_FILES: dict[str, str] = {
    "power": fact("10**10**10"),
    "text times a number": fact("'a' * 1000000000"),
    "list times a number": fact("[1] * 1000000000"),
    "range": fact("range(10000000000)"),
    "sum of ranges": fact(" + ".join(["range(1000000)"] * 50)),
    "product": fact(" * ".join(["99999999"] * 400)),
    "shift": fact("1 << 100000000000"),
    "import": fact("__import__('os').system('touch canary')"),
    "call": fact("open('canary', 'w')"),
    "attribute": fact("().__class__.__bases__"),
    "lambda": fact("(lambda: 1)()"),
    "comprehension": fact("[i for i in range(100000000)]"),
    "format": fact("f'{n!r:>1000000000}'"),
    "brackets": fact("(" * 1900 + "1" + ")" * 1900),
    "signs": fact("-" * 3900 + "1"),
    "sums": fact("1+" * 1900 + "1"),
    "facts in a ring": "[facts]\na = { value = 'b' }\nb = { value = 'a' }\n",
    "nested lists": "x = " + "[" * 50_000,
    "nested tables": "x = " + "{a=" * 50_000,
    "dotted table": "[" + "a." * 5000 + "a]\n",
    "number without end": "[facts]\nn = " + "9" * 5000 + "\n",
    "captures without end": rule("".join(f"{{x{i}:any}}" for i in range(12)) + "!", "x"),
    "words without end": rule("_".join(f"{{x{i}:str}}" for i in range(12)) + "!", "x"),
    "digits without end": rule("".join(f"{{x{i}:int}}" for i in range(12)) + "!", "x"),
    "choices without end": rule(
        "".join(f"{{x{i}:enum}}" for i in range(9)), "x",
        "captures = {" + ", ".join(f"x{i} = {['a' * n for n in range(1, 30)]}" for i in range(9))
        + "}",
    ),
    "regular expression": rule("(a+)+$", "(.*)*"),
    "broadcast": steps("unsqueeze(0)", "broadcast(0, 1000000000000000)"),
    "padding": steps("pad(0, 1000000000000000, 0, 0)"),
    "take": steps(*["take(0, range(10))", "unsqueeze(0)", "broadcast(0, 1000000)"] * 20),
    "steps": steps(*["flip(0)"] * 2000),
    "axes": steps(*["unsqueeze(0)"] * 900),
    "axis": steps("unsqueeze(99999999999999999999999)"),
    "index": steps("index(0, -99999999999999999999999)"),
    "reshape": steps("reshape(" + "1, " * 900 + "10)"),
    "zero": "title = '\0'\n",
    "no TOML": "\x1b[2J<script>",
    "name": rule("../../../../etc/passwd", "$(touch canary)"),
}  # fmt: skip


@pytest.mark.parametrize("name", CLAIM_FILES)
def test_a_hostile_claim_file_is_refused(
    pair: Pair, capfd: Said, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(pair.claims.parent)
    pair.claims.write_text(HEAD + CLAIM_FILES[name])
    code = main(pair.words)
    said = capfd.readouterr()
    assert code == 2, said.err
    assert "Traceback" not in said.err
    assert "\x1b" not in said.err + said.out
    assert len(said.err) + len(said.out) < 200_000
    assert not Path("canary").exists()


def claims_that_are(kind: str, pair: Pair) -> None:
    pair.claims.unlink()
    if kind == "no UTF-8":
        pair.claims.write_bytes(HEAD.encode() + b"title = '\xff\xfe'\n")
    elif kind == "pipe":
        os.mkfifo(pair.claims)
    elif kind == "device":
        pair.claims.symlink_to("/dev/zero")
    elif kind == "ring":
        pair.claims.symlink_to(pair.claims.name)
    elif kind == "folder":
        pair.claims.mkdir()
    elif kind == "huge":
        pair.claims.write_bytes(b"")
        os.truncate(pair.claims, 1 << 40)


@pytest.mark.parametrize("kind", ["no UTF-8", "pipe", "device", "ring", "folder", "huge", "gone"])
def test_claims_that_are_no_text_are_refused(pair: Pair, capfd: Said, kind: str) -> None:
    claims_that_are(kind, pair)
    refused(pair.words, capfd, (2, 4))


def test_long_names_do_not_multiply_what_a_capture_tries(tmp_path: Path, capfd: Said) -> None:
    pair = make_pair(tmp_path)
    names = {"a." * 4000 + str(i): np.zeros(2, np.float32) for i in range(3)}
    for path in (pair.source, pair.target):
        save_file({**names, "7" * 5000: np.zeros(1, np.float32)}, path)
    pair.claims.write_text(HEAD + rule("{a:any}.{b:any}.{c:any}!", "x") + rule("{n:int}", "{n}"))
    assert main(pair.words) == 2
    assert "Traceback" not in capfd.readouterr().err


def test_the_claims_of_the_pair_are_right(pair: Pair) -> None:
    assert pair.claims.read_text() == CLAIMS
    assert main(pair.words) == 0
