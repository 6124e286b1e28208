"""A byte-level vocabulary as the C program beside an exported model reads it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from lockstep.errors import UsageError
from lockstep.tokenizers.model_tokenizer import ModelTokenizer
from lockstep.tokenizers.pre_tokenizers import LLAMA3_NAMES
from lockstep.tokenizers.types import byte_images
from lockstep.tokenizers.vocabulary import CONTROL, NORMAL, UNKNOWN, Vocabulary

# The splittings of tokenizer.c, in the order of its enum.
_SPLITTINGS = (
    ("gpt-2",),
    ("smollm", "refact"),
    ("qwen2", "deepseek-r1-qwen"),
    ("llama-bpe", "llama-v3", "llama3"),
    ("qwen35",),
    ("superbpe",),
)
_HINT = "export to gguf or hf instead"
_CLASSES = {
    "LETTER": r"\p{L}", "NUMBER": r"\p{N}", "DIGIT": r"\d", "MARK": r"\p{M}", "SPACE": r"\s",
}  # fmt: skip
# No character is a letter or a number beyond: these planes are not assigned, or hold no text.
_END = 0x34000
_HALVES = (0xD800, 0xE000)  # of pairs, which are no characters


def c_vocabulary(vocabulary: Vocabulary, tokenizer: ModelTokenizer) -> bytes:
    """The bytes of tokenizer.bin; tokenizer.c says what they are.

    Raises: UsageError if the program cannot split or merge as this tokenizer does.
    """
    v = vocabulary
    splitting = next((i for i, names in enumerate(_SPLITTINGS) if v.pre in names), None)
    if v.model != "gpt2" or splitting is None:
        known = ", ".join(name for names in _SPLITTINGS for name in names)
        raise UsageError(
            f"{v.where}: expected byte-level BPE split as one of {known}, got {v.model} split as "
            f"{v.pre}",
            hint=_HINT,
        )
    texts = [tokenizer.token_bytes(id) for id in range(len(v.pieces))]
    begins = np.cumsum([0, *map(len, texts)])
    images = byte_images()
    byte_ids = [_normal(v, images[byte]) for byte in range(256)]
    merges = np.array(list(_merges(v)), np.int32).reshape(-1, 3)
    kinds = [CONTROL if kind == UNKNOWN else kind for kind in v.kinds]
    stops, named, text = sorted(v.stop_ids), v.special_ids, b"".join(texts)
    first = v.bos_id if v.add_bos and v.bos_id is not None else -1
    head = [len(texts), len(merges), len(stops), len(named), len(text), splitting,
            int(v.pre in LLAMA3_NAMES), first]  # fmt: skip
    parts = [head, stops, begins, kinds, byte_ids, merges.reshape(-1), named]
    return b"LSTOKEN1" + b"".join(np.asarray(p, "<i4").tobytes() for p in parts) + text


def _normal(v: Vocabulary, piece: str) -> int:
    id = v.ids.get(piece, -1)
    return id if id >= 0 and v.kinds[id] == NORMAL else -1


def _merges(v: Vocabulary) -> Iterator[tuple[int, int, int]]:
    """Each merge as ids, once: of those that are there twice the first counts."""
    seen: set[str] = set()
    for merge in v.merges:
        left, _, right = merge.partition(" ")
        ids = (v.ids.get(left, -1), v.ids.get(right, -1), v.ids.get(left + right, -1))
        if min(ids) < 0:
            raise UsageError(
                f"{v.where}: expected merges of tokens into tokens, got {merge!r:.60}", hint=_HINT
            )
        if merge not in seen:
            yield ids
        seen.add(merge)


@lru_cache(maxsize=1)
def c_unicode() -> str:
    """The text of unicode.h: which characters are what, to the library that splits texts here."""
    lines = ["/* Ranges of characters, first and last of each. */", "#include <stdint.h>"]
    for name, expression in _CLASSES.items():
        ranges = ", ".join(f"{{{a}, {b}}}" for a, b in _ranges(expression))
        lines.append(f"static const uint32_t UNICODE_{name}[][2] = {{{ranges}}};")
    return "\n".join(lines) + "\n"


def _ranges(expression: str) -> Iterator[tuple[int, int]]:
    """What of all characters an expression matches."""
    low, high = _HALVES
    characters = [c for c in range(_END) if not low <= c < high]
    text = "".join(map(chr, characters))
    end = 0
    split = Split(Regex(f"(?:{expression})+"), "removed")
    gaps = [offsets for _, offsets in split.pre_tokenize_str(text)]
    for begin, stop in (*gaps, (len(text), len(text))):
        if begin > end:
            yield characters[end], characters[begin - 1]
        end = stop
