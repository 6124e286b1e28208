"""A vocabulary as the C program beside an exported model reads it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from lockstep.errors import UsageError
from lockstep.tokenizers.model_tokenizer import ModelTokenizer
from lockstep.tokenizers.pre_tokenizers import LLAMA3_NAMES, PUNCTUATION
from lockstep.tokenizers.types import byte_images
from lockstep.tokenizers.vocabulary import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, Vocabulary

# The splittings of words.c, in the order of its enum; behind them it has characters.
_SPLITTINGS = (
    ("gpt-2",),
    ("smollm", "refact"),
    ("qwen2", "deepseek-r1-qwen"),
    ("llama-bpe", "llama-v3", "llama3"),
    ("qwen35",),
    ("superbpe",),
    ("default",),
)
# Of tokenizer.c: whether each text gets a blank in front, and which do if they have none there.
_PREFIXES = {(False, "never"): 0, (True, "never"): 1, (False, "first"): 2, (False, "always"): 3}
_INSIDE = re.compile(f"[^{SPACE}]{SPACE}")
_HINT = "export to gguf or hf instead"
_CLASSES = {
    "LETTER": r"\p{L}", "NUMBER": r"\p{N}", "MARK": r"\p{M}", "SPACE": r"\s",
    "PUNCTUATION": PUNCTUATION,
}  # fmt: skip
# The planes that hold text, and the marks that choose a variant; all others are in no class.
_PLANES = ((0, 0x34000), (0xE0000, 0xE0200))
_HALVES = (0xD800, 0xE000)  # of pairs, which are no characters


def c_vocabulary(vocabulary: Vocabulary, tokenizer: ModelTokenizer) -> bytes:
    """The bytes of tokenizer.bin; tokenizer.c says what they are.

    Raises: UsageError if the program cannot split or merge as this tokenizer does.
    """
    v = vocabulary
    merging = _byte_merging(v) if v.model == "gpt2" else _character_merging(v)
    texts = [tokenizer.token_bytes(id) for id in range(len(v.pieces))]
    begins = np.cumsum([0, *map(len, texts)])
    kinds = [CONTROL if kind == UNKNOWN else kind for kind in v.kinds]
    stops, named, text = sorted(v.stop_ids), v.special_ids, b"".join(texts)
    first = v.bos_id if v.add_bos and v.bos_id is not None else -1
    unknown = v.unknown_id if v.model == "llama" else None  # bytes are all known, or refused
    head = [
        len(texts), len(merging.merges), len(stops), len(named), len(merging.characters), len(text),
        merging.splitting, int(v.model == "gpt2" and v.pre in LLAMA3_NAMES), first,
        -1 if unknown is None else unknown, _PREFIXES[v.add_space_prefix, v.metaspace],
        int(merging.one_word),
    ]  # fmt: skip
    merges = np.array(merging.merges, np.int32).reshape(-1)
    characters = np.array(sorted(merging.characters.items()), np.int32).reshape(-1)
    parts = [head, stops, begins, kinds, merging.byte_ids, merges, named, characters]
    numbers, *rest = (np.asarray(part, "<i4").tobytes() for part in parts)
    begin, behind = b"LSTOKEN3" + numbers, b"".join(rest) + text
    words = np.frombuffer(begin + behind + bytes(-len(behind) % 4), "<u4")
    total = int(words.sum(dtype=np.uint64)) % (1 << 32)
    return begin + total.to_bytes(4, "little") + behind


@dataclass(frozen=True, kw_only=True)
class _Merging:
    """How the parts of a word merge: left, right, what becomes of them, and which do so first.

    `characters` are the parts that single characters are, where these are not bytes.
    """

    splitting: int
    byte_ids: list[int]
    merges: list[tuple[int, int, int, int]]
    characters: Mapping[int, int] = field(default_factory=dict)
    one_word: bool = False


def _byte_merging(v: Vocabulary) -> _Merging:
    splitting = next((i for i, names in enumerate(_SPLITTINGS) if v.pre in names), None)
    if splitting is None:
        known = ", ".join(name for names in _SPLITTINGS for name in names)
        raise UsageError(
            f"{v.where}: expected byte-level BPE split as one of {known}, got it split as {v.pre}",
            hint=_HINT,
        )
    images = byte_images()
    byte_ids = [_normal(v, images[byte]) for byte in range(256)]
    return _Merging(splitting=splitting, byte_ids=byte_ids, merges=_listed(v))


def _character_merging(v: Vocabulary) -> _Merging:
    """Of SentencePiece: merges that are listed, or every way to make a piece, by its score."""
    never = {id for id, kind in enumerate(v.kinds) if kind in (CONTROL, UNKNOWN, BYTE)}
    parts = {piece: id for piece, id in v.ids.items() if id not in never}
    letters = sorted({c for piece in parts if len(piece) > 1 for c in piece} - parts.keys())
    parts |= {c: len(v.pieces) + i for i, c in enumerate(letters)}
    return _Merging(
        splitting=len(_SPLITTINGS),
        byte_ids=[v.ids.get(f"<0x{byte:02X}>", -1) for byte in range(256)],
        merges=_listed(v) if v.merges else _scored(v, parts),
        characters={ord(piece): id for piece, id in parts.items() if len(piece) == 1},
        # Where no piece has a blank inside, none reaches over the beginning of a word.
        one_word=any(_INSIDE.search(piece) for piece in parts),
    )


def _normal(v: Vocabulary, piece: str) -> int:
    id = v.ids.get(piece, -1)
    return id if id >= 0 and v.kinds[id] == NORMAL else -1


def _listed(v: Vocabulary) -> list[tuple[int, int, int, int]]:
    """Each merge as ids, once: of those that are there twice the first counts."""
    found: dict[str, tuple[int, int, int, int]] = {}
    for rank, merge in enumerate(v.merges):
        left, _, right = merge.partition(" ")
        ids = (v.ids.get(left, -1), v.ids.get(right, -1), v.ids.get(left + right, -1))
        if min(ids) < 0:
            raise UsageError(
                f"{v.where}: expected merges of tokens into tokens, got {merge!r:.60}", hint=_HINT
            )
        found.setdefault(merge, (*ids, rank))
    return list(found.values())


def _scored(v: Vocabulary, parts: Mapping[str, int]) -> list[tuple[int, int, int, int]]:
    """Every pair of parts that makes a piece; pieces of one score are of one rank."""
    ranks = np.unique(-np.asarray(v.scores, np.float64), return_inverse=True)[1]
    found = []
    for piece, id in parts.items():
        for i in range(1, len(piece)):
            left, right = parts.get(piece[:i]), parts.get(piece[i:])
            if left is not None and right is not None:
                found.append((left, right, id, int(ranks[id])))
    return found


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
    characters = [c for plane in _PLANES for c in range(*plane) if not low <= c < high]
    text = "".join(map(chr, characters))
    end = 0
    split = Split(Regex(f"(?:{expression})+"), "removed")
    gaps = [offsets for _, offsets in split.pre_tokenize_str(text)]
    for begin, stop in (*gaps, (len(text), len(text))):
        if begin > end:
            yield characters[end], characters[begin - 1]
        end = stop
