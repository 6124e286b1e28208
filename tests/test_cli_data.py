"""The verbs for data sets and tokenizers: what they write, what they refuse, what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from training_run import small_corpus

from lockstep.artifacts.dataset_profile import DatasetProfile
from lockstep.artifacts.dataset_qc import DatasetQc
from lockstep.artifacts.tokenizer_roundtrip import TokenizerRoundtrip
from lockstep.cli.main import main
from lockstep.data.corpus import SPLITS, Corpus
from lockstep.data.svg import MAX_BYTES
from lockstep.tokenizers import Tokenizer

ICON = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><text>{}</text></svg>'
HOSTILE = {
    "bomb": '<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]>' + ICON.format("&c;"),
    "outside": ICON.format("").replace("<text></text>", '<image href="http://x.example/a.png"/>'),
    "script": ICON.format("").replace("<text></text>", "<script>alert(1)</script>"),
    "huge": ICON.format("").replace("viewBox", 'width="1e99" viewBox'),
    "large": ICON.format("a" * MAX_BYTES),
    "torn": ICON.format("a")[:40],
    "empty": "",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a small corpus; tests must not change it."""
    directory = tmp_path_factory.mktemp("corpus")
    small_corpus().save(directory)
    return directory


@pytest.fixture
def say(capfd: pytest.CaptureFixture[str]) -> Any:
    """Runs a command line with --json; its exit code and document."""

    def run(*args: object) -> tuple[int, dict[str, Any]]:
        capfd.readouterr()
        code = main([*map(str, args), "--json"])
        document: dict[str, Any] = json.loads(capfd.readouterr().out)
        return code, document

    return run


def test_make_writes_the_corpus_once(say: Any, tmp_path: Path) -> None:
    out = tmp_path / "made"
    code, made = say("data", "make", "--out", out, "--rows-per-prompt", 1, "--seed", 3)
    assert code == 0
    corpus = Corpus.load(out)
    assert {s: made["splits"][s]["rows"] for s in SPLITS} == {
        s: len(corpus.rows(s)) for s in SPLITS
    }
    assert made["rows_per_tag"]["[circle]"] > 0
    before = (out / "dev.txt").stat().st_mtime_ns
    code, refused = say("data", "make", "--out", out, "--rows-per-prompt", 1, "--seed", 4)
    assert (code, refused["error"]["kind"]) == (2, "UsageError")
    assert (out / "dev.txt").stat().st_mtime_ns == before
    code, again = say("data", "make", "--out", out, "--rows-per-prompt", 1, "--seed", 4, "--force")
    assert code == 0
    assert again["splits"]["train"]["sha256"] != made["splits"]["train"]["sha256"]
    code, checked = say("data", "check", out / "train.txt", "--require-contract")
    assert (code, checked["status"], checked["checks"]["contract_gate"]) == (0, "pass", "pass")


def test_a_corpus_that_could_not_be_written_whole_has_no_train_file(
    say: Any, tmp_path: Path
) -> None:
    out = tmp_path / "made"
    (out / "dev.txt").mkdir(parents=True)  # cannot be replaced by a file
    flags = ("--rows-per-prompt", 1, "--force")
    code, document = say("data", "make", "--out", out, *flags)
    assert (code, "dev.txt" in document["error"]["message"]) == (3, True)
    assert not (out / "train.txt").exists()


def test_assets_name_every_file_that_gives_no_row(say: Any, tmp_path: Path) -> None:
    folder, out = tmp_path / "icons", tmp_path / "rows"
    folder.mkdir()
    for i in range(9):
        (folder / f"good{i}.svg").write_text(ICON.format(f"\u2192 {i}"), encoding="utf-8")
    (folder / "same.svg").write_text(ICON.format("\u2192 0"), encoding="utf-8")
    for name, text in HOSTILE.items():
        (folder / f"{name}.svg").write_text(text, encoding="utf-8")
    (folder / "gone.svg").symlink_to(folder / "nowhere")
    (folder / "endless.svg").symlink_to("/dev/zero")
    code, taken = say("data", "assets", "--assets-glob", folder / "**/*.svg", "--out", out)
    assert code == 0
    assert {Path(r["path"]).stem for r in taken["refused"]} == {*HOSTILE, "gone", "endless"}
    assert all(r["reason"] for r in taken["refused"])
    assert [Path(p).stem for p in taken["copies"]] == ["same"]
    corpus = Corpus.load(out)
    rows = {*corpus.train, *corpus.dev, *corpus.holdout}
    assert len(rows) == sum(part["rows"] for part in taken["splits"].values()) == 9
    assert any("-&gt; 0" in row for row in rows)
    code, _ = say("data", "check", out / "train.txt")
    assert code == 0


@pytest.mark.parametrize(("pattern", "said"), [("*.svg", "got 1 files"), ("*.png", "got none")])
def test_assets_without_a_row_are_refused(
    say: Any, tmp_path: Path, pattern: str, said: str
) -> None:
    (tmp_path / "torn.svg").write_text(HOSTILE["torn"])
    out = tmp_path / "rows"
    code, refused = say("data", "assets", "--assets-glob", tmp_path / pattern, "--out", out)
    assert code == 4
    assert said in refused["error"]["message"]
    assert not out.exists()


def test_symbols_can_be_kept_as_references(say: Any, tmp_path: Path) -> None:
    for i in range(9):
        (tmp_path / f"{i}.svg").write_text(ICON.format(f"\u2192 {i}"), encoding="utf-8")
    flags = ("--assets-glob", tmp_path / "*.svg", "--keep-symbols")
    code, _ = say("data", "assets", *flags, "--out", tmp_path / "rows")
    corpus = Corpus.load(tmp_path / "rows")
    rows = (*corpus.train, *corpus.dev, *corpus.holdout)
    assert (code, len(rows)) == (0, 9)
    assert all("&#x2192;" in row for row in rows)


@pytest.mark.parametrize(
    ("content", "flags", "gate"),
    [
        (b"", (), "non_empty_gate"),
        (b"<svg>\xff</svg>", (), "utf8_gate"),
        ("<svg><text>\u00e9</text></svg>".encode(), (), "ascii_gate"),
        (b"plain text", (), "svg_row_gate"),
        (b"<svg/>", ("--require-contract",), "contract_gate"),
        (b"<svg/>\n" * 5, ("--max-duplicate-ratio", 0.2), "duplicates_gate"),
        (b"<svg   />", ("--max-row-chars", 8), "row_length_gate"),
    ],
)
def test_check_fails_gate_by_gate(
    say: Any, tmp_path: Path, content: bytes, flags: tuple[object, ...], gate: str
) -> None:
    (tmp_path / "rows.txt").write_bytes(content)
    code, found = say("data", "check", tmp_path / "rows.txt", *flags)
    assert (code, found["status"]) == (1, "fail")
    assert gate in DatasetQc.load(tmp_path).checks.failed
    assert any(v["gate"] == gate for v in found["violations"])
    code, _ = say("data", "check", tmp_path / "rows.txt", *flags)
    assert code == 2, "the record is there"
    code, _ = say("data", "check", tmp_path / "rows.txt", *flags, "--out", tmp_path / "elsewhere")
    assert code == 1


def test_gates_can_be_left_out(say: Any, tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("pl\u00e4in\n", encoding="utf-8")
    flags = ("--no-require-ascii", "--no-require-svg-rows")
    code, found = say("data", "check", tmp_path / "rows.txt", *flags)
    assert (code, found["checks"]["ascii_gate"]) == (0, "skipped")


def test_a_tokenizer_is_trained_checked_and_counted_with(
    say: Any, corpus: Path, tmp_path: Path
) -> None:
    flags = ("--vocab-size", 200, "--kind", "ascii_bpe", "--pre-tokenizer", "smollm")
    code, trained = say("tokenizer", "train", corpus / "train.txt", "--out", tmp_path, *flags)
    assert code == 0
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.sha256, tokenizer.pre_tokenizer) == (trained["sha256"], "smollm")
    assert "[circle]" in trained["tags"]
    code, _ = say("tokenizer", "train", corpus / "train.txt", "--out", tmp_path, *flags)
    assert code == 2
    code, trip = say("tokenizer", "check", tmp_path, corpus / "holdout.txt")
    assert (code, trip["exact_match"]) == (0, True)
    assert TokenizerRoundtrip.load(tmp_path).dataset_name == "holdout"
    out = ("--out", tmp_path)
    code, counts = say("data", "profile", corpus / "dev.txt", "--tokenizer", tmp_path, *out)
    assert (code, counts["token_count"] > 0) == (0, True)
    code, counts = say("data", "profile", corpus / "dev.txt", *out, "--force")
    assert (code, DatasetProfile.load(tmp_path).token_count) == (0, None)


def test_a_tokenizer_that_loses_bytes_fails(say: Any, corpus: Path, tmp_path: Path) -> None:
    assert main(["tokenizer", "train", str(corpus / "train.txt"), "--out", str(tmp_path)]) == 0
    path = tmp_path / "tokenizer.json"
    document = json.loads(path.read_text())
    tag = next(t for t in document["added_tokens"] if t["content"] == "[circle]")
    tag["rstrip"] = True  # swallows the blank behind it
    path.write_text(json.dumps(document))
    (tmp_path / "rows.txt").write_text("[circle] <svg/>\n")
    code, trip = say("tokenizer", "check", path, tmp_path / "rows.txt")
    assert (code, trip["status"], trip["exact_match"]) == (1, "fail", False)


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("train", "{none}", "--out", "{tmp}"), 4),
        (("train", "{rows}", "--out", "{tmp}", "--vocab-size", 10), 2),
        (("train", "{rows}", "--out", "{tmp}", "--vocab-size", 10**15), 2),
        (("train", "{rows}", "--out", "{rows}/below"), 3),
        (("check", "{none}", "{rows}"), 4),
        (("check", "{rows}", "{rows}", "--out", "{tmp}"), 4),
    ],
)
def test_what_no_tokenizer_can_be_made_of(
    say: Any, corpus: Path, tmp_path: Path, args: tuple[object, ...], code: int
) -> None:
    places = {"none": tmp_path / "none", "tmp": tmp_path / "t", "rows": corpus / "train.txt"}
    got, document = say("tokenizer", *(str(arg).format(**places) for arg in args))
    assert got == code
    assert document["error"]["hint"]
    assert not (tmp_path / "t").exists()


def test_a_row_is_drawn(say: Any, corpus: Path, tmp_path: Path) -> None:
    png = tmp_path / "row.png"
    code, _ = say("data", "render", corpus / "train.txt", "--row", 2, "--size", 64, "--out", png)
    assert code == 0
    assert png.read_bytes().startswith(b"\x89PNG")
    (tmp_path / "icon.svg").write_text(ICON.format("a\nb"))
    code, drawn = say("data", "render", tmp_path / "icon.svg", "--out", png, "--force")
    assert (code, "a b" in drawn["svg"]) == (0, True)
    code, _ = say("data", "render", corpus / "train.txt", "--row", 10**6, "--out", tmp_path / "b")
    assert code == 2
    (tmp_path / "torn.svg").write_text(HOSTILE["torn"])
    code, _ = say("data", "render", tmp_path / "torn.svg", "--out", tmp_path / "b")
    assert code == 4
    assert not (tmp_path / "b").exists()


def test_a_row_from_standard_input_is_drawn(corpus: Path, tmp_path: Path) -> None:
    row = (corpus / "dev.txt").read_text().splitlines()[0]
    command = [sys.executable, "-m", "lockstep.cli.main", "data", "render", "-", "--out", "a.png"]
    subprocess.run(
        command, input=row, text=True, check=True, cwd=tmp_path, env=dict(os.environ),
        capture_output=True,
    )  # fmt: skip
    assert (tmp_path / "a.png").stat().st_size > 100


@pytest.mark.parametrize("group", ["data", "tokenizer"])
def test_a_group_alone_asks_for_its_verb(say: Any, group: str) -> None:
    assert main([group]) == 2
    assert main([group, "--help"]) == 0
    code, document = say(group, "nope")
    assert (code, document["error"]["hint"]) == (2, f"see `lockstep {group} --help`")
    code, document = say("data", "check", "x", "--max-duplicate-ratio", "nan")
    assert (code, "finite" in document["error"]["message"]) == (2, True)
