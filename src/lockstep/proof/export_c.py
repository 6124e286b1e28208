"""The proof of a folder of C: it is built in a copy, and must read and choose as ours."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lockstep.artifacts import Check
from lockstep.engine.export_c import WEIGHTS
from lockstep.engine.model import OpenModel
from lockstep.engine.sampling import Sampler, Sampling
from lockstep.engine.session import generate
from lockstep.engine.text import open_tokenizer
from lockstep.errors import EnvironmentLacks
from lockstep.native.compiler import find_compiler
from lockstep.proof.export import prompt_text
from lockstep.proof.export_tokenizer import corpus_of, ids_check, ids_of
from lockstep.tokenizers import begin_ids

STEPS = 48  # greedy tokens after a prompt
SECONDS = 900  # for a build, or for all tokens of a prompt
LATE = 124  # the exit code of timeout(1)
THREADS = (1, 3)
Say = Callable[[str], None]


def prove_c(opened: OpenModel, path: Path, say: Say = lambda text: None) -> list[Check]:
    """Builds the folder with this machine's compiler and compares it with the model in it."""
    try:
        compiler = shlex.join(find_compiler().command)
    except EnvironmentLacks as error:
        return [_missing(error.message)]
    if shutil.which("make") is None:
        return [_missing("make is not installed")]
    with tempfile.TemporaryDirectory(prefix="lockstep-") as name:
        folder = _copied(path, Path(name) / "copy")
        say("building the program")
        command = ["make", f"CC={compiler}", "STRICT=-Werror"]
        built = _run(command, folder)
        checks = [_build_check(built, compiler)]
        if checks[0].verdict == "fail":
            return checks
        say("asking it for ids and tokens")
        return [*checks, *answer_checks(opened, folder)]


def _copied(path: Path, folder: Path) -> Path:
    """The texts of the folder, and a link to its weights."""
    folder.mkdir()
    for file in path.iterdir():
        if file.name == WEIGHTS:
            (folder / file.name).symlink_to(file.resolve())
        else:
            shutil.copy(file, folder)
    return folder


def _run(
    command: Sequence[str], folder: Path, sent: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Runs something with nothing of our environment but where programs are."""
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
    try:
        return subprocess.run(
            command, cwd=folder, env=environment, input=sent, capture_output=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        late = f"error: {command[0]} did not end within {SECONDS} s"
        return subprocess.CompletedProcess(command, LATE, b"", late.encode())


def _build_check(built: subprocess.CompletedProcess[bytes], compiler: str) -> Check:
    said = built.stderr.decode("utf-8", "replace").strip().splitlines()
    wrong = [line for line in said if "error" in line] or said or ["no message"]
    failed = built.returncode != 0
    return Check.measured(
        id="build", name="builds that fail", against=f"{compiler} -Wall -Wextra -Werror",
        compared=1, unit="builds", figure=int(failed), relation="==", bound=0,
        reason=f"{wrong[0]:.200}" if failed else "",
    )  # fmt: skip


def answer_checks(opened: OpenModel, folder: Path) -> Iterator[Check]:
    """The ids of texts and the greedy tokens, of a folder that is built."""
    tokenizer = open_tokenizer(opened.source)
    texts = corpus_of(opened.source, tokenizer)
    sent = "\0".join(texts).encode()
    expected, found = [], []
    for markup in (False, True):
        flags = ["--special"] if markup else []
        lines = _run(["./lm", "--tokenize", *flags], folder, sent).stdout.decode().splitlines()
        expected += ids_of(tokenizer, texts, markup=markup)
        found += [[int(id) for id in line.split()] for line in lines]
    found += [[-1]] * (len(expected) - len(found))  # of a program that ended early
    yield ids_check("tokenizer", "the program", texts * 2, expected, found)
    yield _greedy(opened, folder, _prompts(prompt_text(tokenizer), texts))


def _prompts(first: str, texts: Sequence[str]) -> list[str]:
    """The plain one, one of drawings or code, and one that is not ASCII where there is any."""
    code = [text for text in texts if text.startswith("<svg")]
    foreign = [text for text in texts if not text.isascii() and len(text) < 30]
    return [first, *code[:1], *foreign[:1]]


def _greedy(opened: OpenModel, folder: Path, prompts: Sequence[str]) -> Check:
    compared, bad = 0, []
    for prompt in prompts:
        ours = _our_tokens(opened, prompt)
        for threads in THREADS if ours else ():
            done = _run(
                ["./lm", "-p", prompt, "-n", str(STEPS), "--threads", str(threads), "--ids"], folder
            )
            theirs = [int(id) for id in done.stdout.split()]
            compared += len(ours)
            if done.returncode != 0 or theirs != ours:
                bad.append(f"{prompt!r:.30} on {threads} threads: {theirs[:8]}, not {ours[:8]}")
    return Check.measured(
        id="greedy", name="greedy texts of the program that differ", against="lockstep",
        compared=compared, unit="tokens", figure=len(bad), relation="==", bound=0,
        reason="; ".join(bad[:2]),
    )  # fmt: skip


def _our_tokens(opened: OpenModel, prompt: str) -> list[int]:
    """What our engine goes on with; nothing where the prompt leaves no room."""
    tokenizer, session = open_tokenizer(opened.source), opened.session
    ids = begin_ids(tokenizer) + tokenizer.encode(prompt)
    if not ids or len(ids) >= session.context:
        return []
    session.reset()
    sampler = Sampler(Sampling())
    return list(generate(session, ids, sampler, max_tokens=STEPS, stop_ids=tokenizer.stop_ids))


def _missing(reason: str) -> Check:
    return Check.missing(
        id="build", name="ids and greedy text of the program", against="lockstep", unit="tokens",
        reason=reason,
    )  # fmt: skip
