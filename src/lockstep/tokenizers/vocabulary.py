"""The vocabulary of a GGUF file: pieces, kinds, scores, merges, and the ids that mean something."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from lockstep.errors import InputError, nearest
from lockstep.tokenizers.pre_tokenizers import LLAMA3_NAMES, SPLITS

T = TypeVar("T")

# Kinds of tokens.  Source: SentencePiece's model proto, and enum llama_token_type of llama.cpp.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "▁"  # how SentencePiece spells a blank
MODELS = {"gpt2": "byte-level BPE", "llama": "SentencePiece"}
MAX_TOKENS = 1 << 22
_KEY = "tokenizer.ggml."
ALL_ENDS = "eos_token_ids"  # without _KEY
_HINT = "convert the model again with llama.cpp, or download it again"

# Pieces that end an answer whatever kind the file gives to them.
# Source: special_eog_ids in https://github.com/ggml-org/llama.cpp/blob/00ad355e009e/src/llama-vocab.cpp
ENDINGS = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "</s>", "<eos>"),
    *("<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>"),
    *("<｜end▁of▁sentence｜>", "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    *("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>"),
)
# Pieces that are control tokens although files give them another kind.
_INFILLS = (
    *("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<PRE>", "▁<PRE>", "<|code_prefix|>"),
    *("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<SUF>", "▁<SUF>", "<|code_suffix|>"),
    *("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<MID>", "▁<MID>", "<|code_middle|>"),
    *(
        "<｜fim▁begin｜>",
        "<｜fim▁hole｜>",
        "<｜fim▁end｜>",
        "<|prefix|>",
        "<|suffix|>",
        "<|middle|>",
    ),
)
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """What a GGUF file says of its tokenizer, checked."""

    where: str
    model: str  # one of MODELS
    pre: str
    pieces: Sequence[str]
    ids: Mapping[str, int]
    kinds: bytes  # the kind of each token
    scores: Sequence[float]
    merges: Sequence[str]
    bos_id: int | None
    eos_id: int | None
    unknown_id: int | None
    stop_ids: frozenset[int]
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool
    # Tokens that take the blanks behind them.
    strip_ids: frozenset[int] = frozenset()
    # Where a tokenizer.json puts a blank in front of a text that has none.
    metaspace: Literal["never", "first", "always"] = "never"

    @property
    def special_ids(self) -> list[int]:
        """Ids that are matched in the text before it is split, the longest piece first."""
        found = self.of_kinds(CONTROL, USER_DEFINED, UNKNOWN)
        return sorted(found, key=lambda i: -len(self.pieces[i].encode("utf-8")))

    def of_kinds(self, *kinds: int) -> list[int]:
        """The ids of these kinds."""
        kinds_V = np.frombuffer(self.kinds, np.uint8)
        found: list[int] = np.flatnonzero(np.isin(kinds_V, kinds)).tolist()
        return found

    def byte_of(self, id: int) -> int | None:
        """The byte that a token such as `<0x0A>` stands for, None for others."""
        if self.kinds[id] != BYTE:
            return None
        spelled = _BYTE_PIECE.fullmatch(self.pieces[id])
        return int(spelled[1], 16) if spelled else None


def read_vocabulary(metadata: Mapping[str, Any], where: str = "model.gguf") -> Vocabulary:
    """The vocabulary in the metadata of a GGUF file.

    Raises: InputError if a part is missing, contradicts another, or is of a make that is not known.
    """
    facts = _Facts(metadata, where)
    model, pre = _make(facts)
    pieces = _named(facts.array("tokens", str))
    ids = dict(zip(pieces, range(len(pieces)), strict=True))
    if not pieces or len(ids) != len(pieces) or len(pieces) > MAX_TOKENS:
        raise facts.wrong("tokens", f"1 to {MAX_TOKENS} different tokens", _twice(pieces))
    kinds = facts.array("token_type", int, len(pieces)) or [NORMAL] * len(pieces)
    scores = facts.array("scores", float, len(pieces))
    merges = facts.array("merges", str)
    if model == "llama" and not scores:
        raise facts.wrong("scores", "one for each token", "none")
    if any(score != score for score in scores):
        raise facts.wrong("scores", "numbers, of which one is first", "nan")
    if model == "gpt2" and not merges:
        raise facts.wrong("merges", "the merges of a byte-level BPE", "none")
    spm = model == "llama"
    kinds_V = _controls(facts.bytes_of(kinds), ids)
    bos_id = facts.id("bos_token_id", len(pieces), 1 if spm else None)
    eos_id = facts.id("eos_token_id", len(pieces), 2 if spm else None)
    return Vocabulary(
        where=where, model=model, pre=pre, pieces=pieces, ids=ids,
        kinds=kinds_V, scores=scores, merges=merges,
        bos_id=bos_id, eos_id=eos_id,
        unknown_id=facts.id("unknown_token_id", len(pieces), 0 if spm else None),
        stop_ids=_stops(facts, ids, eos_id),
        add_bos=facts.adds("bos", spm or pre in LLAMA3_NAMES, bos_id),
        add_eos=facts.adds("eos", False, eos_id),
        add_space_prefix=spm and facts.value("add_space_prefix", bool, True),
        strip_ids=_strips(metadata, kinds_V, ids),
    )  # fmt: skip


def _make(facts: _Facts) -> tuple[str, str]:
    """Which tokenizer it is, and how that splits a text first."""
    model = facts.value("model", str, "")
    if model not in MODELS:
        raise facts.wrong(
            "model",
            f"one of {', '.join(MODELS)}",
            model or "none",
            f"{nearest(model, MODELS)}use a model whose tokenizer is one of these",
        )
    pre = facts.value("pre", str, "default") or "default"
    if model == "gpt2" and pre not in SPLITS:
        raise facts.wrong(
            "pre", f"one of {', '.join(SPLITS)}", pre, f"{nearest(pre, SPLITS)}use another model"
        )
    return model, pre


class _Facts:
    """Metadata that is read with its type."""

    def __init__(self, metadata: Mapping[str, Any], where: str) -> None:
        self.metadata = metadata
        self.where = where

    def wrong(self, key: str, expected: str, got: str, hint: str = _HINT) -> InputError:
        return InputError(
            f"{self.where}, {_KEY}{key}: expected {expected}, got {got!s:.120}", hint=hint
        )

    def value(self, key: str, kind: type[T], default: T) -> T:
        found = self.metadata.get(_KEY + key, default)
        if type(found) is not type(default) or not isinstance(found, kind):
            raise self.wrong(key, f"a value of type {kind.__name__}", repr(found))
        return found

    def array(self, key: str, kind: type[T], n: int | None = None) -> Sequence[T]:
        """An array, empty if there is none; the first `n` items where it may be longer."""
        found = self.metadata.get(_KEY + key)
        if found is None:
            return ()
        if not isinstance(found, list) or (found and {*map(type, found)} != {kind}):
            raise self.wrong(key, f"an array of {kind.__name__}", f"{found!r:.40}")
        if n is not None and len(found) < n:
            raise self.wrong(key, f"{n} items, as many as tokens", str(len(found)))
        return found if n is None or len(found) == n else found[:n]

    def bytes_of(self, kinds: Sequence[int]) -> bytearray:
        try:
            return bytearray(kinds)
        except ValueError as error:
            raise self.wrong("token_type", "kinds of tokens, 1 to 6", str(max(kinds))) from error

    def id(self, key: str, n: int, default: int | None = None) -> int | None:
        found = self.metadata.get(_KEY + key)
        if found is None:
            return default if default is not None and default < n else None
        if type(found) is not int or not 0 <= found < n:
            raise self.wrong(key, f"an id from 0 to {n - 1}", repr(found))
        return found

    def adds(self, name: str, default: bool, id: int | None) -> bool:
        """Whether a text gets the token `name` put to it."""
        found = self.value(f"add_{name}_token", bool, default)
        if found and id is None:
            raise self.wrong(f"{name}_token_id", f"an id, as add_{name}_token asks for", "none")
        return found


def _named(pieces: Sequence[str]) -> Sequence[str]:
    """The pieces as llama.cpp has them: up to a NUL, and with a name where that leaves nothing."""
    if "\0" in "".join(pieces):
        pieces = [piece.partition("\0")[0] for piece in pieces]
    if "" not in pieces:
        return pieces
    return [piece or f"[EMPTY_{i}]" for i, piece in enumerate(pieces)]


def _twice(pieces: Sequence[str]) -> str:
    """Which piece occurs twice."""
    seen: set[str] = set()
    found = next((p for p in pieces if p in seen or seen.add(p)), None)  # type: ignore[func-returns-value]
    return str(len(pieces)) if found is None else f"{found!r:.60} twice"


def _controls(kinds: bytearray, ids: Mapping[str, int]) -> bytes:
    """The kinds, where pieces that can only be control tokens are that."""
    for piece in (*ENDINGS, *_INFILLS):
        if (id := ids.get(piece)) is not None:
            kinds[id] = CONTROL
    return bytes(kinds)


def _strips(metadata: Mapping[str, Any], kinds: bytes, ids: Mapping[str, int]) -> frozenset[int]:
    """The tokens behind which llama.cpp drops blanks: those of Phi-3, which it knows by its name.

    Source: https://github.com/ggml-org/llama.cpp/blob/00ad355e009e/src/llama-vocab.cpp
    """
    name = str(metadata.get("general.name", "")).lower()
    if "phi-3" not in name and "phi3" not in name:
        return frozenset()
    special = {id for id, kind in enumerate(kinds) if kind in (CONTROL, USER_DEFINED, UNKNOWN)}
    return frozenset(special - {ids.get(piece) for piece in ("<unk>", "<s>", "<|endoftext|>")})


def _stops(facts: _Facts, ids: Mapping[str, int], eos_id: int | None) -> frozenset[int]:
    """The ids that end an answer.

    Source: special_eog_ids of llama.cpp; the key for any number of them is one of ollama's.
    """
    keys = ("eot", "eom", "fim_pad", "fim_rep", "fim_sep")
    named = (facts.id(f"{key}_token_id", len(ids)) for key in keys)
    known = (ids.get(piece) for piece in ENDINGS)
    listed = facts.array(ALL_ENDS, int)
    if any(not 0 <= id < len(ids) for id in listed):
        raise facts.wrong(ALL_ENDS, f"ids from 0 to {len(ids) - 1}", repr(listed))
    return frozenset(id for id in (eos_id, *named, *known, *listed) if id is not None)
