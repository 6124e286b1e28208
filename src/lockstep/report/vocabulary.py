"""The text behind each token id, from the run's own tokenizer.json."""

from __future__ import annotations

from functools import cache
from typing import Any

from lockstep.artifacts import parse_json


def vocabulary(data: bytes, where: str) -> dict[int, str]:
    """Token texts by id; bytes that are no character by themselves are shown as \\xNN.

    Raises: InputError if the file is not JSON.
    """
    document = parse_json(data, where)
    model = document.get("model") if isinstance(document, dict) else None
    vocab = model.get("vocab") if isinstance(model, dict) else None
    found = {
        i: _readable(piece)
        for piece, i in (vocab.items() if isinstance(vocab, dict) else ())
        if isinstance(i, int)
    }
    added: Any = document.get("added_tokens") if isinstance(document, dict) else None
    for token in added if isinstance(added, list) else ():
        if isinstance(token, dict) and isinstance(token.get("id"), int):
            found[token["id"]] = str(token.get("content", ""))
    return found


def _readable(piece: str) -> str:
    alphabet = _byte_alphabet()
    if any(character not in alphabet for character in piece):
        return piece
    raw = bytes(alphabet[character] for character in piece)
    return raw.decode("utf-8", errors="backslashreplace")


@cache
def _byte_alphabet() -> dict[str, int]:
    """The characters that stand for bytes in byte-level BPE.

    Source: GPT-2: printable bytes stand for themselves, the others for 256, 257, ... in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    spelled = {chr(byte): byte for byte in printable}
    return spelled | {chr(256 + i): byte for i, byte in enumerate(others)}
