"""Files of rows: UTF-8, one row to a line."""

from __future__ import annotations

from pathlib import Path

from lockstep.artifacts import read_bytes
from lockstep.errors import InputError


def read_rows(path: Path, *, may_be_empty: bool = False) -> list[str]:
    """The rows of a file; blank lines are none.

    Raises: InputError if the file is missing, empty, or not UTF-8 (naming line and byte).
    """
    data = read_bytes(Path(path), hint="check the path, or build one with `lockstep data make`")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}:{line}: expected UTF-8, got the byte 0x{data[error.start]:02X} "
            f"at offset {error.start}",
            hint="convert the file to UTF-8, for example with iconv",
        ) from error
    rows = [line for line in text.replace("\r\n", "\n").split("\n") if line.strip()]
    if not rows and not may_be_empty:
        raise InputError(f"{path}: expected rows, got an empty file", hint="check the data set")
    return rows
