"""Models as folders of C: built with make where there is no Python, asked, and damaged."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_run import promoted_run
from model_directories import sentencepiece_directory, sentencepiece_file
from tokenizer_files import (
    bpe_metadata,
    nasty_texts,
    prepend_blanks,
    sentencepiece_metadata,
    sentencepiece_model,
    write_hf_tokenizer,
)

from lockstep.artifacts import Check
from lockstep.cli.main import main
from lockstep.engine.export_c import export_c
from lockstep.engine.model import OpenModel
from lockstep.engine.packed import SUM_BYTES, word_sums
from lockstep.engine.source import open_source
from lockstep.errors import UsageError
from lockstep.proof.export_c import answer_checks, prove_c
from lockstep.tokenizers import (
    GGUFTokenizer,
    HFTokenizer,
    ModelTokenizer,
    Part,
    c_unicode,
    c_vocabulary,
    vocabulary_of,
)
from lockstep.tokenizers.pre_tokenizers import pre_tokenizer

pytestmark = pytest.mark.usefixtures("quick_builds")

SUM_AT = 56  # where the sum of tokenizer.bin stands
PROMPTS = ("[circle]", "naïve 漢字 — 😀 12345", '<svg width="100"> [palette:cool]')


@dataclass(frozen=True)
class Built:
    """A run, its folder of C, built, and the model that is in it."""

    run: Path
    folder: Path
    opened: OpenModel


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    root = tmp_path_factory.mktemp("c")
    run = promoted_run(root / "run", "bpe").path
    opened = export_c(open_source(str(run)), root / "made")
    make(root / "made")
    return Built(run, root / "made", opened)


def make(folder: Path, *variables: str) -> None:
    """Builds with nothing in the environment but a path to the compiler."""
    command = ["env", "-i", "PATH=/usr/bin:/bin", "make", "STRICT=-Werror", *variables]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def lm(folder: Path, *args: str, sent: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Runs the program from somewhere else."""
    return subprocess.run(
        [str(folder / "lm"), *args], cwd="/", env={}, input=sent, capture_output=True, timeout=120
    )


def ids(folder: Path, *args: str) -> list[int]:
    done = lm(folder, "--ids", *args)
    assert done.returncode == 0, done.stderr
    return [int(id) for id in done.stdout.split()]


def lockstep_run(
    model: Path, prompt: str, capfd: pytest.CaptureFixture[str], *flags: str
) -> dict[str, Any]:
    assert main(["run", str(model), "-p", prompt, "-n", "24", "--json", *flags]) == 0
    found: dict[str, Any] = json.loads(capfd.readouterr().out)
    return found


def failing(checks: Sequence[Check]) -> list[str]:
    return [check.id for check in checks if check.verdict == "fail"]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_program_prints_what_lockstep_run_prints(
    built: Built, prompt: str, capfd: pytest.CaptureFixture[str]
) -> None:
    ours = lockstep_run(built.run, prompt, capfd)
    for threads in ("1", "2", "5"):
        assert ids(built.folder, "-p", prompt, "-n", "24", "--threads", threads) == ours["tokens"]
    done = lm(built.folder, "-p", prompt, "-n", "24")
    assert done.stdout.decode("utf-8", "replace").removesuffix("\n") == ours["text"]
    assert lm(built.folder, "-n", "24", sent=prompt.encode()).stdout == done.stdout


def test_the_program_finds_its_files_from_the_path_of_a_shell(built: Built) -> None:
    asked = ("-p", "[circle]", "-n", "4")
    done = subprocess.run(
        ["lm", *asked], cwd="/", env={"PATH": str(built.folder)}, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == lm(built.folder, *asked).stdout


def test_the_readme_shows_a_prompt_that_the_model_knows(built: Built) -> None:
    assert './lm -p "[circle]" -n 96' in (built.folder / "README.txt").read_text()


def test_the_proof_holds_on_the_folder(built: Built) -> None:
    checks = list(answer_checks(built.opened, built.folder))
    assert [check.verdict for check in checks] == ["pass", "pass"], checks
    assert min(check.compared for check in checks) > 100


def copied(built: Built, folder: Path) -> Path:
    shutil.copytree(built.folder, folder)
    return folder


def changed(file: Path, at: int, by: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= by
    file.write_bytes(content)


def test_a_weight_with_another_sign_is_caught(built: Built, tmp_path: Path) -> None:
    folder = copied(built, tmp_path / "m")
    for at in range(3, 4096, 4):
        changed(folder / "weights.bin", at, 0x80)
    # The program of such weights: with the sums of others it would end before it reads a prompt.
    sums = ", ".join(map(hex, word_sums(np.fromfile(folder / "weights.bin", np.uint8))))
    header = re.sub(r"(MODEL_SUMS\[\] = ){.*}", rf"\1{{{sums}}}", (folder / "model.h").read_text())
    (folder / "model.h").write_text(header)
    make(folder)
    assert lm(folder, "-p", "[circle]", "-n", "1").returncode == 0
    assert failing(list(answer_checks(built.opened, folder))) == ["greedy"]


def test_a_flipped_byte_of_the_weights_is_refused_with_its_place(
    built: Built, tmp_path: Path
) -> None:
    folder = copied(built, tmp_path / "m")
    file = folder / "weights.bin"
    n_bytes = file.stat().st_size
    for at in (0, n_bytes // 2 + 5, n_bytes - 1):
        changed(file, at, 1)
        done = lm(folder, "-p", "[circle]", "-n", "1")
        assert done.returncode == 4
        assert f"weights.bin: bytes 0 to {n_bytes} are not".encode() in done.stderr
        assert done.stdout == b""
        changed(file, at, 1)
    assert lm(folder, "-p", "[circle]", "-n", "1").returncode == 0


def test_sums_are_those_of_each_part() -> None:
    part = np.arange(SUM_BYTES // 8, dtype=np.uint64)
    arena = np.concatenate([part, part[::-1], part[:16] + 2**63]).view(np.uint8)
    total = int(part.sum())
    assert word_sums(arena) == [total, total, 120]


def test_a_merge_of_other_tokens_is_caught(built: Built, tmp_path: Path) -> None:
    folder = copied(built, tmp_path / "m")
    content = bytearray((folder / "tokenizer.bin").read_bytes())
    head = [int.from_bytes(content[8 + 4 * i : 12 + 4 * i], "little") for i in range(8)]
    merges = SUM_AT + 4 + 4 * (head[2] + 2 * head[0] + 1 + 256)
    content[merges : merges + 4] = (1).to_bytes(4, "little")  # the left of the first merge
    content[SUM_AT : SUM_AT + 4] = bytes(4)
    words = np.frombuffer(content + bytes(-len(content) % 4), "<u4")
    content[SUM_AT : SUM_AT + 4] = words.sum(dtype="<u4").tobytes()
    (folder / "tokenizer.bin").write_bytes(content)
    assert lm(folder, "-p", "[circle]", "-n", "1").returncode == 0
    assert "tokenizer" in failing(list(answer_checks(built.opened, folder)))


@pytest.mark.parametrize("at", [12, 40, SUM_AT, 1000, -1])
def test_a_byte_of_the_vocabulary_that_changed_is_refused(
    built: Built, tmp_path: Path, at: int
) -> None:
    file = copied(built, tmp_path / "m") / "tokenizer.bin"
    content = bytearray(file.read_bytes())
    content[at] ^= 4
    file.write_bytes(content)
    done = lm(file.parent, "-p", "[circle]", "-n", "1")
    assert (done.returncode, done.stdout) == (4, b"")
    assert b"tokenizer.bin" in done.stderr


def test_c_that_does_not_compile_is_caught(built: Built, tmp_path: Path) -> None:
    folder = copied(built, tmp_path / "m")
    for name in ("lm", "main.o"):
        (folder / name).unlink()
    text = (folder / "main.c").read_text()
    (folder / "main.c").write_text(text.replace("int main(", "int unused;\nint main(int, "))
    checks = prove_c(built.opened, folder)
    assert failing(checks) == ["build"]
    assert "main.c" in checks[0].reason


def test_a_build_that_does_not_end_is_a_build_that_fails(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lockstep.proof.export_c.SECONDS", 0.001)
    checks = prove_c(built.opened, built.folder)
    assert failing(checks) == ["build"]
    assert "did not end" in checks[0].reason


@pytest.mark.parametrize(
    "pre",
    ["gpt-2", "smollm", "refact", "qwen2", "llama-bpe", "llama3", "qwen35", "superbpe", "default"],
)
def test_the_ids_of_the_program_are_those_of_the_tokenizer(
    built: Built, tmp_path: Path, pre: str
) -> None:
    tokenizer = GGUFTokenizer.read(bpe_metadata(pre_tokenizer(pre), pre))
    assert_same_ids(built, tokenizer, tmp_path / "m")


def assert_same_ids(built: Built, tokenizer: ModelTokenizer, folder: Path) -> None:
    """The program with this vocabulary gives the ids of the tokenizer, as text and as markup."""
    folder.mkdir()
    shutil.copy(built.folder / "lm", folder)
    (folder / "tokenizer.bin").write_bytes(c_vocabulary(vocabulary_of(tokenizer), tokenizer))
    texts = [text for text in nasty_texts() if "\0" not in text and text]
    for markup, flags in ((False, ()), (True, ("--special",))):
        done = lm(folder, "--tokenize", *flags, sent="\0".join(texts).encode())
        assert done.returncode == 0, done.stderr
        found = [[int(id) for id in line.split()] for line in done.stdout.decode().split("\n")]
        for text, theirs in zip(texts, found[:-1], strict=True):
            assert theirs == tokenizer.encode_parts([Part(text, markup)]), text


@pytest.mark.parametrize("change", ["", "scores", "letters", "bytes", "blanks"])
@pytest.mark.parametrize("gemma", [False, True])
def test_the_ids_of_the_program_are_those_of_sentencepiece(
    built: Built, tmp_path: Path, gemma: bool, change: str
) -> None:
    metadata = sentencepiece_metadata(sentencepiece_model(gemma=gemma), gemma=gemma)
    pieces = metadata["tokenizer.ggml.tokens"]
    if change == "scores":  # many of one score: the one furthest left merges first
        scores = [float(score // 50) for score in metadata["tokenizer.ggml.scores"]]
        metadata["tokenizer.ggml.scores"] = scores
    elif change == "letters":  # which merge although they are no tokens
        metadata["tokenizer.ggml.tokens"] = [f"[{p}]" if p in ("e", "o") else p for p in pieces]
    elif change == "bytes":
        metadata["tokenizer.ggml.tokens"] = [f"[{p}]" if p == "<0xF0>" else p for p in pieces]
    elif change == "blanks":  # a piece that reaches over the beginning of a word
        metadata["tokenizer.ggml.tokens"] = [*pieces[:-1], "o▁w"]
    assert_same_ids(built, GGUFTokenizer.read(metadata), tmp_path / "m")


@pytest.mark.torch
@pytest.mark.parametrize("change", ["", "prepended", "always"])
@pytest.mark.parametrize("make", ["llama", "gemma"])
def test_the_ids_of_the_program_are_those_of_tokenizer_json(
    built: Built, tmp_path: Path, make: str, change: str
) -> None:
    path = write_hf_tokenizer(make, tmp_path / "hf")
    if change == "always":
        document = json.loads((path / "tokenizer.json").read_text())
        document["normalizer"] = None
        document["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁",
                                     "prepend_scheme": "always", "split": False}  # fmt: skip
        (path / "tokenizer.json").write_text(json.dumps(document))
    if change == "prepended":
        prepend_blanks(path)
    assert_same_ids(built, HFTokenizer(path), tmp_path / "m")


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["gguf", "hf"])
def test_a_sentencepiece_model_as_c_prints_what_lockstep_run_prints(
    kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, folder = tmp_path / "model", tmp_path / "c"
    model = sentencepiece_file(path) if kind == "gguf" else sentencepiece_directory(path, "gemma")
    assert main(["export", str(model), "--to", "c", "--ctx=64", "-o", str(folder), "--json"]) == 0
    checks = json.loads(capfd.readouterr().out)["checks"]
    assert {check["id"]: check["verdict"] for check in checks} == dict.fromkeys(
        ("build", "tokenizer", "greedy"), "pass"
    )
    make(folder, f"CC={os.environ['CC']}")
    for prompt in (" naïve 漢字 — 😀", "hello world"):
        ours = lockstep_run(model, prompt, capfd, "--ctx=64")  # the program that is built already
        assert ids(folder, "-p", prompt, "-n", "24") == ours["tokens"]


@pytest.mark.torch
def test_a_tokenizer_that_the_program_does_not_know_is_refused_by_name(tmp_path: Path) -> None:
    tokenizer = GGUFTokenizer.read(bpe_metadata(pre_tokenizer("gpt-2"), "gpt-2"))
    with pytest.raises(UsageError, match="split as gpt-9"):
        c_vocabulary(replace(vocabulary_of(tokenizer), pre="gpt-9"), tokenizer)
    path = write_hf_tokenizer("gemma", tmp_path / "hf")
    for key, value in (("ignore_merges", True), ("vocab", {"a": 0})):
        document = json.loads((path / "tokenizer.json").read_text())
        document["model"] |= {key: value, "merges": []}
        (tmp_path / "tokenizer.json").write_text(json.dumps(document))
        with pytest.raises(UsageError, match="a token for each byte"):
            vocabulary_of(HFTokenizer(tmp_path))
    document = json.loads((path / "tokenizer.json").read_text())
    document["normalizer"] = {"type": "Lowercase"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(UsageError, match="Lowercase"):
        vocabulary_of(HFTokenizer(tmp_path))


def test_what_a_letter_is_follows_the_library() -> None:
    text = c_unicode()
    assert "{65, 90}, {97, 122}, {170, 170}" in text
    assert "UNICODE_SPACE[][2] = {{9, 13}, {32, 32}, {133, 133}" in text


def test_wrong_use_and_damaged_files_are_said_with_a_code(built: Built, tmp_path: Path) -> None:
    folder = copied(built, tmp_path / "m")
    for code, args in (
        (2, ("-p", "a", "--ctx", "97")),
        (2, ("-p", "a", "-n", "0")),
        (2, ("-p", "a", "--threads", "x")),
        (2, ("-p", "a", "--nonsense", "1")),
        (2, ("-p",)),
        (2, ("-p", "")),
        (2, ("-p", "1 2 3 " * 200)),
        (2, ("-p", "[circle] a b c", "--ctx", "2")),
        (0, ("--help",)),
    ):
        done = lm(folder, *args)
        assert done.returncode == code, args
        assert bool(done.stderr) == bool(code)
    assert lm(folder, sent=b"\xff\xfe").returncode == 2
    for name in ("tokenizer.bin", "weights.bin"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1])
        assert lm(folder, "-p", "a").returncode == 4
        (folder / name).unlink()
        assert lm(folder, "-p", "a").returncode == 4
        (folder / name).write_bytes(content)


def test_a_text_ends_with_the_context(built: Built) -> None:
    flags = ("-p", "[circle]", "--ignore-eos", "--ids")
    assert len(ids(built.folder, *flags)) == 96
    assert ids(built.folder, *flags, "--ctx", "7") == ids(built.folder, *flags)[:7]


def test_draws_repeat_with_their_seed(built: Built) -> None:
    flags = ("-p", "[circle]", "-n", "20", "--ignore-eos")
    greedy = ids(built.folder, *flags)
    assert ids(built.folder, *flags, "--temperature", "2", "--top-k", "1") == greedy
    hot = (*flags, "--temperature", "5", "--seed")
    assert ids(built.folder, *hot, "3") == ids(built.folder, *hot, "3")
    assert len({tuple(ids(built.folder, *hot, str(seed))) for seed in range(4)}) > 1


@pytest.mark.slow
@pytest.mark.torch
def test_a_quantised_file_as_c(
    built: Built, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file, folder = tmp_path / "m.gguf", tmp_path / "c"
    gguf = ["export", str(built.run), "--to", "gguf", "--type", "Q8_0", "-o", str(file)]
    assert main(gguf) == 0
    assert main(["export", str(file), "--to", "c", "--ctx", "64", "-o", str(folder)]) == 0
    assert main(["export", str(file), "--to", "c", "-o", str(folder)]) == 2
    assert "MODEL_CONTEXT = 64" in (folder / "model.h").read_text()
    assert not (folder / "lm").exists()
    capfd.readouterr()
    make(folder)
    assert ids(folder, "-p", "[circle]", "-n", "24")
