"""The pages say what the code does: generated pages are current, links lead somewhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import click
import pytest

from lockstep import __version__
from lockstep.cli.main import VERBS, lockstep
from lockstep.families import FAMILIES
from lockstep.formats.dequantise import SUPPORTED

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)\s]*)?\)")


def script(name: str) -> ModuleType:
    """A script of docs/ as a module."""
    spec = spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["cli.md", "artifacts.md", "claims.md"])
def test_a_generated_page_is_current(name: str) -> None:
    page = script("generate").PAGES[name]()
    assert (ROOT / "docs" / name).read_text() == page, "run `make docs` and commit what it writes"


def broken_links(text: str, place: Path) -> list[str]:
    """The relative links of a page that lead nowhere."""
    targets = [t for t in LINK.findall(text) if not t.startswith(("http://", "https://"))]
    return [target for target in targets if not (place / target).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    assert not broken_links(page.read_text(), page.parent)


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("")
    text = "[a](there.md#top) [b](gone.md) [c](https://example.org/gone.md)"
    assert broken_links(text, tmp_path) == ["gone.md"]


COMMAND = re.compile(
    r"^(?: {4}(?:\$ )?|\$ )lockstep ([a-z].*)$|`lockstep ([a-z][^`]*)`", re.MULTILINE
)
QUOTED = re.compile(r"\"[^\"]*\"|'[^']*'")
AFTERWARDS = re.compile(r"[#|;&>\\]")  # what is no argument any more


def wrong_commands(text: str) -> list[str]:
    """The commands on a page that have a verb or an option which does not exist."""
    found = [indented or inline for indented, inline in COMMAND.findall(text)]
    return [each for each in found if not _exists(_words(each))]


def _words(command: str) -> list[str]:
    return AFTERWARDS.split(QUOTED.sub("TEXT", command))[0].split()


def _exists(words: list[str]) -> bool:
    context = click.Context(lockstep)
    command: click.Command | None = lockstep
    while isinstance(command, click.Group):
        command = command.get_command(context, words.pop(0)) if words else command
        if not words:
            break
    if command is None:
        return False
    options = {name for p in command.params for name in (*p.opts, *p.secondary_opts)} | {"--help"}
    asked = {
        word.strip("[]").partition("=")[0] for word in words if word.strip("[").startswith("-")
    }
    return asked <= options


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_on_a_page_exist(page: Path) -> None:
    assert not wrong_commands(page.read_text())


def test_a_command_that_does_not_exist_is_found() -> None:
    text = "`lockstep doctor --json` `lockstep cure`\n\n    lockstep doctor --fast  # now\n"
    text += "$ lockstep doctor --json | head -3\n$ lockstep doctor --json --slow | head\n"
    assert wrong_commands(text) == ["cure", "doctor --fast  # now", "doctor --json --slow | head"]


def test_the_op_of_the_page_keeps_the_laws(tmp_path: Path) -> None:
    """Follows docs/add-an-op.md in a copy of the source."""
    page = (ROOT / "docs" / "add-an-op.md").read_text()
    blocks = dict(re.findall(r"^```(python|c)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))
    for folder in ("src", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.pyc"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    ops = tmp_path / "src" / "lockstep" / "ops"
    (ops / "square.py").write_text(blocks["python"])
    (ops / "square.c").write_text(blocks["c"])
    with (ops / "__init__.py").open("a") as file:
        file.write("import lockstep.ops.square\n")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment["PYTHONPATH"] = str(tmp_path / "src")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/test_ops.py", "-k", "square"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert re.search(r"^\d{2,} passed", done.stdout, re.MULTILINE), done.stdout


@pytest.mark.torch
@pytest.mark.parametrize("slow", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_walk_of_verify_prints_what_it_says(tmp_path: Path, slow: bool) -> None:
    walk = script("verify_walk")
    page = walk.PAGE.read_text()
    found = walk.follow(page, tmp_path, slow=slow)
    assert walk.scrubbed(found) == walk.scrubbed(page), "run `python docs/verify_walk.py`"
    recipe = re.search(
        r"^\$ python root.py .*\n(\w{64})\n\$ .*\n(\w{64})  root", found, re.MULTILINE
    )
    assert recipe is not None
    assert recipe[1] == recipe[2]
    shown = re.findall(r"^VERDICT: (PASS|FAIL)", found, re.MULTILINE)
    assert shown.count("FAIL") == page.count("\nVERDICT: FAIL") > 0


def test_a_walk_that_goes_another_way_is_found(tmp_path: Path) -> None:
    walk = script("verify_walk")
    page = (
        "```text said.txt\nFAIL in 0.1 s\n```\n\n"
        "```console\n$ cat said.txt; \\\n> exit 3\nPASS in 7.2 s\n```\n"
    )
    found = walk.follow(page, tmp_path)
    assert found.endswith("> exit 3\nFAIL in 0.1 s\n(exit code 3)\n```\n")
    assert walk.scrubbed(found) != walk.scrubbed(page)
    assert walk.scrubbed(found.replace("0.1 s", "7.2 s")) == walk.scrubbed(found)


def test_the_readme_leads_to_every_page() -> None:
    linked = set(LINK.findall((ROOT / "README.md").read_text()))
    assert {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} <= linked


def test_the_readme_lists_the_verbs_that_exist() -> None:
    rows = re.findall(r"^\| `lockstep ([a-z]+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert rows == list(VERBS), "give each verb one row in the table of the README"


def test_the_page_of_chats_lists_the_models_that_run() -> None:
    text = (ROOT / "docs" / "chat.md").read_text()
    assert [name for name in (*FAMILIES, *SUPPORTED) if f"`{name}`" not in text] == []


def test_the_changelog_has_this_version() -> None:
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
