"""What the engine, the terminal and the server ask of any tokenizer."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from lockstep.errors import InputError


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a prompt: markup, whose control tokens count, or a user's text."""

    text: str
    markup: bool = False


class ModelTokenizer(Protocol):
    """Text to ids and back, for one model."""

    where: str
    vocab_size: int
    stop_ids: frozenset[int]
    add_bos: bool

    @property
    def bos_id(self) -> int | None:
        """The token that a text begins with."""

    @property
    def eos_id(self) -> int | None:
        """The token that a text ends with."""

    @property
    def last_id(self) -> int | None:
        """The token that is put behind a text, where that is asked for."""

    @property
    def unknown_id(self) -> int | None:
        """The token for what has no other."""

    def encode(self, text: str) -> list[int]:
        """The ids of a user's text; the names of control tokens in it are plain text.

        Raises: InputError if a character cannot be encoded.
        """

    def encode_parts(self, parts: Sequence[Part]) -> list[int]:
        """The ids of a prompt; the names of control tokens count in markup only.

        Raises: InputError if a character cannot be encoded.
        """

    def token_bytes(self, id: int) -> bytes:
        """What an id stands for; nothing for an id outside the vocabulary."""

    @property
    def most_bytes(self) -> int | None:
        """How many bytes of a text one token can stand for at most; None if any number of them."""

    def is_control(self, id: int) -> bool:
        """Whether an id is a control token, which no reader is shown."""

    @property
    def control_names(self) -> Sequence[str]:
        """The pieces that markup may have and a user's text may not."""


def begin_ids(tokenizer: ModelTokenizer) -> list[int]:
    """What the model wants a text to begin with: its beginning token, or nothing."""
    return [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []


def end_ids(tokenizer: ModelTokenizer) -> list[int]:
    """What the model wants a whole text to end with: what its tokenizer puts there, or nothing."""
    return [] if tokenizer.last_id is None else [tokenizer.last_id]


def longest_token(tokenizer: ModelTokenizer) -> int:
    """The bytes of the longest token of a vocabulary."""
    return max(len(tokenizer.token_bytes(id)) for id in range(tokenizer.vocab_size))


def decode(tokenizer: ModelTokenizer, ids: Iterable[int]) -> str:
    """The text of some ids without control tokens; bytes that are not UTF-8 become U+FFFD."""
    shown = (tokenizer.token_bytes(id) for id in ids if not tokenizer.is_control(id))
    return codecs.decode(b"".join(shown), "utf-8", "replace")


def check_unicode(text: str, where: str) -> None:
    """Insists on text that UTF-8 can spell.

    Raises: InputError naming the place of the first lone surrogate.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        line = text.count("\n", 0, error.start) + 1
        column = error.start - text.rfind("\n", 0, error.start)
        raise InputError(
            f"{where}, line {line}, column {column}: expected text, "
            f"got U+{ord(text[error.start]):04X}, half of a character",
            hint="save the text as UTF-8",
        ) from error
