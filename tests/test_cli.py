"""The contract of the command line: verdicts, exit codes, one JSON document, no surprises."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import click
import pytest

from lockstep.cli import doctor, main
from lockstep.cli.verb import Outcome, Verb, VerbGroup
from lockstep.errors import (
    BudgetError,
    EnvironmentLacks,
    GateError,
    InexactError,
    InputError,
    LockstepError,
    UsageError,
)

RUN_MAIN = "import sys; from lockstep.cli.main import main; sys.exit(main())"


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """A verb `probe` that raises or returns what the test puts under `does`."""
    plan: dict[str, object] = {"does": Outcome({"answer": 42}, "forty-two")}

    @click.command(cls=Verb)
    @click.option("--size", type=int, default=1)
    def command(size: int) -> Outcome:
        print("progress")
        os.write(1, b"from a child\n")
        does = plan["does"]
        if isinstance(does, BaseException):
            raise does
        assert isinstance(does, Outcome)
        return does

    module = type(sys)("lockstep.cli.probe")
    module.command = command  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lockstep.cli.probe", module)
    monkeypatch.setitem(main.VERBS, "probe", "Do what the test says.")
    return plan


ENDS = [
    (GateError("canary: loss differs", hint="open the report"), 1),
    (UsageError("train: expected --steps > 0, got -1"), 2),
    (EnvironmentLacks("compiler: none found"), 3),
    (InputError("weights: truncated"), 4),
    (BudgetError("plan: 9 GiB"), 5),
    (InexactError("export: equal to 1e-6 only"), 6),
    (click.BadParameter("no such thing"), 2),
    (click.FileError("data.txt", "cannot read"), 4),
    (OSError(errno.ENOSPC, "No space left on device", "/full/file"), 3),
    (PermissionError(errno.EACCES, "Permission denied", "/shut"), 3),
    (OSError(errno.EROFS, "Read-only file system", "/ro"), 3),
    (MemoryError(), 3),
    (LockstepError("checker: a pass is wrong"), 70),
    (ValueError("a bug"), 70),
    (FileNotFoundError(errno.ENOENT, "No such file", "a path that we made up"), 70),
    (KeyboardInterrupt(), 130),
    (Outcome({"verdict": "fail"}, "FAIL", exit_code=1), 1),
    (Outcome({}, ""), 0),
]


@pytest.mark.parametrize(("end", "code"), ENDS, ids=lambda value: type(value).__name__)
def test_every_end_has_its_exit_code_in_text_and_in_json(
    probe: dict[str, object], capfd: pytest.CaptureFixture[str], end: object, code: int
) -> None:
    probe["does"] = end
    assert main.main(["probe"]) == code
    said = capfd.readouterr()
    assert ("Traceback" in said.err) == (code == 70), (
        "a traceback is for our own bugs, and only those"
    )
    assert main.main(["probe", "--json"]) == code
    document = json.loads(capfd.readouterr().out)
    if not isinstance(end, Outcome):
        assert document["exit_code"] == code
        assert document["error"]["message"] in said.err


def test_json_is_the_only_thing_on_stdout(
    probe: dict[str, object], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["probe", "--json"]) == 0
    said = capfd.readouterr()
    assert json.loads(said.out) == {"answer": 42}
    assert "progress" in said.err
    assert "from a child" in said.err
    assert "forty-two" not in said.out


def test_text_mode_prints_the_text(
    probe: dict[str, object], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["probe"]) == 0
    said = capfd.readouterr()
    assert sorted(said.out.splitlines()) == ["forty-two", "from a child", "progress"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
def test_a_document_that_is_not_json_is_our_bug(
    probe: dict[str, object], capfd: pytest.CaptureFixture[str], value: object
) -> None:
    probe["does"] = Outcome({"loss": value}, "fine")
    assert main.main(["probe", "--json"]) == 70
    assert json.loads(capfd.readouterr().out)["error"]["kind"] == "Bug"


def test_the_hint_is_shown(probe: dict[str, object], capfd: pytest.CaptureFixture[str]) -> None:
    probe["does"] = GateError("canary: loss differs", hint="open the report")
    main.main(["probe"])
    assert capfd.readouterr().err == "error: canary: loss differs\n  hint: open the report\n"


@pytest.mark.parametrize("flags", [[], ["--json"]])
@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["docter"], "try `lockstep doctor`"),
        (["zzzz"], "see `lockstep --help` for the verbs"),
        (["doctor", "--quick"], "see `lockstep doctor --help`"),
        (["probe", "--size", "many"], "see `lockstep probe --help`"),
        (["doctor", "surplus"], "see `lockstep doctor --help`"),
        (["--quick"], "see `lockstep --help`"),
    ],
)
def test_a_wrong_command_line_exits_2_and_says_where_to_look(
    probe: dict[str, object],
    capfd: pytest.CaptureFixture[str],
    words: list[str],
    hint: str,
    flags: list[str],
) -> None:
    assert main.main([*words, *flags]) == 2
    said = capfd.readouterr()
    assert hint in said.err
    if flags:
        assert json.loads(said.out)["error"]["hint"] == hint
    else:
        assert said.out == ""


def test_no_verb_shows_the_help(capfd: pytest.CaptureFixture[str]) -> None:
    assert main.main([]) == 0
    shown = capfd.readouterr().out
    assert all(verb in shown for verb in main.VERBS)


@pytest.mark.parametrize("verb", sorted(main.VERBS))
def test_every_verb_is_complete(verb: str) -> None:
    command = import_module(f"lockstep.cli.{verb}").command
    leaves = [command]
    if isinstance(command, click.Group):
        assert isinstance(command, VerbGroup)
        context = click.Context(command)
        found = [command.get_command(context, name) for name in command.list_commands(context)]
        leaves = [leaf for leaf in found if leaf is not None]
        assert len(leaves) == len(found) > 0
    for leaf in leaves:
        assert isinstance(leaf, Verb), f"{verb}: expected cls=Verb, which brings --json"
        assert leaf.help, f"{verb}: expected a docstring, it is the help"
        options = [p for p in leaf.params if isinstance(p, click.Option)]
        silent = [o.name for o in options if not o.help]
        assert not silent, f"{verb}: options without help: {silent}"


def test_help_imports_no_verb_and_no_heavy_package() -> None:
    code = (
        "import sys; from lockstep.cli.main import main; main(['--help']); "
        "print([m for m in sys.modules if m in ('numpy', 'torch', 'transformers', 'tokenizers') "
        "or m.startswith('lockstep.') and m.split('.')[1] not in ('cli', 'errors')], "
        "[m for m in sys.modules if m.startswith('lockstep.cli.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours = "'lockstep.cli.termination', 'lockstep.cli.verb', 'lockstep.cli.main'"
    assert done.stdout.splitlines()[-1] == f"[] [{ours}]"


def test_a_reader_that_goes_away_is_no_error_of_ours() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", RUN_MAIN, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait(timeout=300) == main.READER_GONE
    assert said == b""


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("--help >&-", 0),
        ("--help > /dev/full", 3),
        ("nope >&-", 2),
        ("nope 2>&-", 2),
        ("nope >&- 2>&-", 2),
        ("nope --json >&-", 2),
        ("nope --json > /dev/full", 3),
        ("nope --json 2> /dev/full", 2),
        ("nope --json <&- >&- 2>&-", 2),
    ],
)
def test_streams_that_are_closed_or_full_show_no_traceback(command: str, code: int) -> None:
    shell = f"exec '{sys.executable}' -c '{RUN_MAIN}' {command}"
    buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, env=buffered)
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_what_the_output_cannot_spell_is_shown_by_number() -> None:
    code = "from lockstep.cli import main; main._open_streams(); print('\u2264 1')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "\\u2264 1\n")


@pytest.mark.parametrize(("name", "code"), [("~nobody-at-all/x", 2), ("/" + "x" * 300, 3)])
def test_a_place_that_cannot_be_is_no_bug_of_ours(name: str, code: int) -> None:
    assert main.main(["go", name]) == code


def test_the_doctor_finds_what_is_missing(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # neither a compiler nor a browser
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)  # no package of ours either
    monkeypatch.setattr("lockstep.native.compiler.find_spec", lambda name: None)
    assert main.main(["doctor", "--json"]) == 3
    findings = {f["name"]: f for f in json.loads(capfd.readouterr().out)["findings"]}
    missing = {name for name, finding in findings.items() if not finding["works"]}
    assert missing == {"compiler", "ziglang", "torch", "transformers", "chromium"}
    assert all(findings[name]["mend"] for name in missing)
    assert main.main(["doctor"]) == 3
    assert f"mend it: {sys.executable} -m pip install ziglang" in capfd.readouterr().out


def test_the_doctor_builds_with_zig_where_there_is_no_other_compiler(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    findings = {f.name: f for f in (doctor.look_at_compiler(), doctor.look_at_zig())}
    assert findings["compiler"].works
    assert findings["ziglang"].works
    assert findings["compiler"].found in findings["ziglang"].found
    assert not list((home / "build").glob("*.so")), "a visit of the doctor leaves no builds behind"


def test_the_doctor_refuses_a_compiler_that_makes_nothing(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken-cc"
    broken.write_text("#!/bin/sh\necho broken 1.0\n")  # answers to --version, and to all else
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    assert not doctor.look_at_compiler().works


def test_the_doctor_refuses_a_home_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("not a directory")
    monkeypatch.setenv("LOCKSTEP_HOME", str(occupied / "home"))
    finding = doctor.look_at_home()
    assert not finding.works
    assert finding.required
