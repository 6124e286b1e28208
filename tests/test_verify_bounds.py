"""What a claim file, an output path or a size may not ask for, and valid strides."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner

from lockstep.artifacts.files import atomic_write_bytes
from lockstep.cli.verify_options import Size
from lockstep.errors import InputError, UsageError
from lockstep.formats.leaf import ELEMENT_TYPES
from lockstep.verify.claims.constants import constant
from lockstep.verify.claims.expressions import evaluate, parse_expression
from lockstep.verify.engine.journal import Journal


def test_a_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UsageError, match="regular file"):
        atomic_write_bytes(pipe, b"x")
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_size_above_all_memory_is_a_wrong_option() -> None:
    import click

    @click.command()
    @click.option("--size", type=Size())
    def command(size: int) -> None:
        raise AssertionError(size)

    found = CliRunner().invoke(command, ["--size", "99999999999999GiB"])
    assert found.exit_code == 2
    assert "2^62" in found.output


@pytest.mark.parametrize(
    "text", ["range(262145)", "[range(200000), range(200000)]", "f in [f, f, f, f]"]
)
def test_the_lists_of_an_expression_are_bounded_together(text: str) -> None:
    tree = parse_expression(text, "x").tree
    with pytest.raises(UsageError, match="262144 items"):
        evaluate(tree, {"f": list(range(100_000))}, "x")
    assert evaluate(parse_expression("range(262144)", "x").tree, {}, "x") == list(range(262144))


def test_bits_have_the_digits_of_their_type() -> None:
    assert constant("0x00007fc0", ELEMENT_TYPES["F32"], "x") == b"\xc0\x7f\0\0"
    with pytest.raises(UsageError, match="0x7fc0"):
        constant("0x7fc0", ELEMENT_TYPES["F32"], "x")


def test_a_journal_is_read_line_by_line(tmp_path: Path) -> None:
    journal = tmp_path / "j"
    with journal.open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(InputError, match="j:1: expected a line"):
        Journal(journal, "run")
    journal.write_bytes(b'{"torn')
    assert Journal(journal, "run").claims == {}
    with pytest.raises(InputError, match="pipe, a device"):
        Journal(Path("/dev/zero"), "run")


@pytest.mark.torch
def test_the_product_of_strides_has_no_bound(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from lockstep.formats.open_store import open_store

    torch.save({"a": torch.zeros([2] * 12)}, tmp_path / "a.pt")
    assert [leaf.shape for leaf in open_store(tmp_path / "a.pt").leaves.values()] == [(2,) * 12]
