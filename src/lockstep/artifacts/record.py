"""The base of every file of a run directory: a typed record with a schema name."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from lockstep.artifacts.codec import decode, encode, unexplained
from lockstep.artifacts.files import append_bytes, atomic_write_text, read_bytes
from lockstep.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A record with one JSON spelling; a subclass names its default file and its schema."""

    file: ClassVar[str]
    schema: ClassVar[str]

    def __init_subclass__(cls, *, file: str = "", schema: str = "") -> None:
        # dataclass(slots=True) builds the class a second time, then without the keywords.
        if file:
            cls.file = file
        if schema:
            cls.schema = schema
        if not (hasattr(cls, "file") and hasattr(cls, "schema")):
            raise TypeError(f"{cls.__name__}: expected file= and schema=, got neither or one")

    def __post_init__(self) -> None:
        """Insists that each number that is null has a reason.

        Raises: InputError naming the key.
        """
        reasons: dict[str, str] | None = getattr(self, "not_measured", None)
        if reasons is None:
            return
        for path in sorted(unexplained(self)):
            if not reasons.get(path):
                raise InputError(
                    f"{self.file}: not_measured: expected a reason why {path} is null, got none",
                    hint="write the file again with the step that makes it",
                )

    def document(self) -> dict[str, Any]:
        """What is written: the schema, then the fields.

        Raises: GateError if a number is not finite.
        """
        return {"schema": self.schema, **encode(self, self.file)}

    def save(self, directory: Path, file: str | None = None) -> Path:
        """Writes the record in one rename, under its own name or another.

        Raises: EnvironmentLacks if the disk refuses; an older file is then as it was.
        """
        text = json.dumps(self.document(), indent=2, ensure_ascii=False, allow_nan=False)
        return atomic_write_text(Path(directory) / (file or self.file), text + "\n")

    @classmethod
    def load(cls, directory: Path, file: str | None = None) -> Self:
        """Reads what `save` wrote.

        Raises: InputError naming file and key if it is missing, damaged or of another schema.
        """
        path = Path(directory) / (file or cls.file)
        return cls.from_document(parse_json(read_bytes(path), str(path)), str(path))

    @classmethod
    def find(cls, directory: Path, file: str | None = None) -> Self | None:
        """Like `load`, but None if there is no such file."""
        return (
            cls.load(directory, file) if (Path(directory) / (file or cls.file)).exists() else None
        )

    @classmethod
    def from_document(cls, document: Any, where: str) -> Self:
        """The record that a parsed document spells.

        Raises: InputError naming the key.
        """
        found = document.get("schema") if isinstance(document, dict) else None
        if found != cls.schema:
            raise InputError(
                f"{where}: schema: expected {cls.schema!r}, got {found!r:.80}",
                hint="write the file again with this version, or remove it",
            )
        fields = {key: value for key, value in document.items() if key != "schema"}
        record = decode(fields, cls, where)
        assert isinstance(record, cls)
        return record


R = TypeVar("R", bound=Artifact)


def parse_json(data: bytes, where: str) -> Any:
    """The value of a JSON text in UTF-8, without NaN, infinities or repeated keys.

    Raises: InputError saying where the text is wrong.
    """

    def no_constant(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    def no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key is given twice")
        return found

    try:
        return json.loads(
            data.decode("utf-8"), parse_constant=no_constant, object_pairs_hook=no_repeats
        )
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{where}: expected JSON, got: {error}", hint="restore the file, or write it again"
        ) from error


def append_line(path: Path, record: Artifact) -> None:
    """Appends the record as one line of JSON; it is in the file when this returns.

    Raises: EnvironmentLacks if the disk refuses; the file is then as it was.
    """
    text = json.dumps(record.document(), ensure_ascii=False, allow_nan=False)
    append_bytes(path, text.encode("utf-8", "backslashreplace") + b"\n")


def read_lines(path: Path, cls: type[R]) -> tuple[R, ...]:
    """The records of a file of lines; a torn last line, which only a crash leaves, is no record.

    Raises: InputError naming the line and the key.
    """
    *lines, _ = read_bytes(path).split(b"\n")
    rows = ((f"{path}:{i}", line) for i, line in enumerate(lines, start=1))
    return tuple(cls.from_document(parse_json(line, where), where) for where, line in rows)
