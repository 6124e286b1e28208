"""What a tokenizer is trained as; llama.cpp reproduces all of these id for id."""

from __future__ import annotations

import json
from typing import Any, Literal, get_args

from tokenizers import pre_tokenizers

from lockstep.errors import InputError

Kind = Literal["ascii_bpe", "bpe"]
PreTokenizer = Literal["superbpe", "gpt-2", "smollm"]  # the names of `tokenizer.ggml.pre`
KINDS: tuple[Kind, ...] = get_args(Kind)
PRE_TOKENIZERS: tuple[PreTokenizer, ...] = get_args(PreTokenizer)

_ASCII_BYTES = (0x09, 0x0A, *range(0x20, 0x7F))
_ASCII = frozenset(map(chr, _ASCII_BYTES))


def byte_images() -> dict[int, str]:
    """For each byte, the printable character that stands for it in a byte-level vocabulary."""
    shown = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
    hidden = [byte for byte in range(256) if byte not in shown]
    return {b: chr(b) for b in shown} | {b: chr(256 + i) for i, b in enumerate(hidden)}


def alphabet(kind: Kind) -> list[str]:
    """The characters that a vocabulary of this kind starts from, in byte order."""
    images = byte_images()
    return [images[byte] for byte in (_ASCII_BYTES if kind == "ascii_bpe" else range(256))]


def check_text(text: str, kind: Kind, where: str) -> None:
    """Insists that every character can be encoded; the library would drop the others silently.

    Raises: InputError naming row, column and character.
    """
    for i, character in enumerate(text):
        known = character in _ASCII if kind == "ascii_bpe" else not _is_surrogate(character)
        if not known:
            line, column = text.count("\n", 0, i) + 1, i - text.rfind("\n", 0, i)
            expected = "tab, newline or printable ASCII" if kind == "ascii_bpe" else "valid text"
            raise InputError(
                f"{where}, line {line}, column {column}: expected {expected}, "
                f"got U+{ord(character):04X} {character!r}",
                hint="map the text to ASCII first, or choose the tokenizer bpe",
            )


def _is_surrogate(character: str) -> bool:
    return "\ud800" <= character <= "\udfff"


def spelling(component: pre_tokenizers.PreTokenizer) -> Any:
    """The JSON of a pre-tokenizer inside tokenizer.json, by which a loaded file is recognised."""
    return json.loads(component.__getstate__())


def library_ids(library: Any, text: str) -> list[int]:
    """The ids of a text, with nothing put around it; other threads run meanwhile.

    The library's `encode` holds the interpreter for as long as it takes.
    """
    ids: list[int] = library.encode_batch_fast([text], add_special_tokens=False)[0].ids
    return ids
