"""The vocabulary of a tokenizer of any make, in the terms of GGUF: what all exports start from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from lockstep.errors import UsageError
from lockstep.tokenizers.gguf_tokenizer import GGUFTokenizer
from lockstep.tokenizers.hf_tokenizer import HFTokenizer
from lockstep.tokenizers.model_tokenizer import ModelTokenizer
from lockstep.tokenizers.pre_tokenizers import (
    LLAMA3_NAMES,
    SPLITS,
    known_pre_tokenizers,
)
from lockstep.tokenizers.tokenizer import Tokenizer
from lockstep.tokenizers.types import spelling
from lockstep.tokenizers.vocabulary import (
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
)

# How Hugging Face spells what SPLITS spells letter by letter.
_ENDINGS = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_HF_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_HF_SPELLINGS = {
    tuple(s.replace(_ENDINGS, _HF_ENDINGS) for s in SPLITS[name]): name
    for name in ("qwen35", "qwen2", "llama-bpe")
}
# How a blank is spelled, and put in front of a text.
_REPLACED = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_PREPENDED = {"type": "Prepend", "prepend": SPACE}
_HINT = "export to another format, or use a model with byte-level BPE"


def vocabulary_of(tokenizer: ModelTokenizer) -> Vocabulary:
    """Pieces, kinds, merges and splitting of a tokenizer.

    Raises: UsageError naming what of it has no spelling in GGUF.
    """
    if isinstance(tokenizer, GGUFTokenizer):
        v = tokenizer.vocabulary
        if v.strip_ids:
            raise UsageError(
                f"{v.where}: expected tokens that take nothing else, got some that take the "
                f"blanks behind them, such as {v.pieces[min(v.strip_ids)]!r:.60}",
                hint=_HINT,
            )
        return v
    if isinstance(tokenizer, Tokenizer):
        kinds = [NORMAL] * tokenizer.vocab_size
        for tag in tokenizer.tags:
            kinds[tokenizer.token_id(tag)] = USER_DEFINED
        kinds[tokenizer.eos_id] = CONTROL
        return _byte_level(
            tokenizer, tokenizer.pieces, kinds, tokenizer.merges, tokenizer.pre_tokenizer
        )
    if isinstance(tokenizer, HFTokenizer):
        return _of_document(tokenizer, json.loads(tokenizer.document))
    raise AssertionError(f"a tokenizer of no known make: {type(tokenizer).__name__}")


def padded(vocabulary: Vocabulary, n_rows: int) -> Vocabulary:
    """The same with unused pieces behind, up to the rows of the embedding table.

    Raises: UsageError if the table has fewer rows than there are pieces.
    """
    n = len(vocabulary.pieces)
    if n > n_rows:
        raise UsageError(
            f"{vocabulary.where}: expected at most {n_rows} tokens, the rows of the embedding, "
            f"got {n}",
            hint="use the tokenizer of this model",
        )
    more = [f"[PAD{i}]" for i in range(n, n_rows)]
    pieces = [*vocabulary.pieces, *more]
    return replace(
        vocabulary,
        pieces=pieces,
        ids=dict(zip(pieces, range(n_rows), strict=True)),
        kinds=vocabulary.kinds + bytes([UNUSED] * len(more)),
        scores=[*vocabulary.scores, *([-1e4] * len(more) if vocabulary.scores else [])],
    )


def _byte_level(
    tokenizer: ModelTokenizer,
    pieces: Sequence[str],
    kinds: Sequence[int],
    merges: Sequence[tuple[str, str]],
    pre: str,
) -> Vocabulary:
    return Vocabulary(
        where=tokenizer.where, model="gpt2", pre=pre, pieces=pieces,
        ids=dict(zip(pieces, range(len(pieces)), strict=True)),
        kinds=bytes(kinds), scores=(), merges=[" ".join(pair) for pair in merges],
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id if tokenizer.last_id is None else tokenizer.last_id,
        unknown_id=tokenizer.unknown_id, stop_ids=tokenizer.stop_ids,
        add_bos=tokenizer.add_bos, add_eos=tokenizer.last_id is not None,
        add_space_prefix=False,
    )  # fmt: skip


def _of_document(tokenizer: HFTokenizer, document: Mapping[str, Any]) -> Vocabulary:
    model = document["model"]
    if model.get("type") != "BPE":
        raise UsageError(
            f"{tokenizer.where}: expected pieces that merges make (BPE), got {model.get('type')}",
            hint=_HINT,
        )
    _check_added(tokenizer.where, document)
    if model.get("byte_fallback"):
        return _sentence_piece(tokenizer, document)
    name = _splitting(document.get("pre_tokenizer"))
    if name is None:
        raise UsageError(
            f"{tokenizer.where}: expected byte-level BPE split as one of {', '.join(SPLITS)}, "
            "got it split in another way",
            hint=_HINT,
        )
    if bool(model.get("ignore_merges")) != (name in LLAMA3_NAMES):
        raise UsageError(
            f"{tokenizer.where}: expected whole words to be tokens with {', '.join(LLAMA3_NAMES)} "
            f"only, got ignore_merges = {model.get('ignore_merges')} with {name}",
            hint=_HINT,
        )
    pieces, kinds = _pieces(document)
    return _byte_level(tokenizer, pieces, kinds, _merges(model), name)


def _check_added(where: str, document: Mapping[str, Any]) -> None:
    """Insists on added tokens that are found wherever their text is, and take nothing else.

    Raises: UsageError naming one that is not.
    """
    prepends = _steps(document)[:1] == [_PREPENDED]  # then also to what normalised tokens are
    for token in document.get("added_tokens", ()):
        odd = [name for name in ("single_word", "lstrip", "rstrip") if token.get(name)]
        odd += ["normalized"] if prepends and token.get("normalized") else []
        if odd:
            raise UsageError(
                f"{where}: expected added tokens that are found wherever their text is, got "
                f"{token['content']!r:.60} with {' and '.join(odd)}",
                hint=_HINT,
            )


def _pieces(document: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    """All pieces by their ids, and their kinds; ids that are left out are unused."""
    pieces = {id: piece for piece, id in document["model"]["vocab"].items()}
    kinds = dict.fromkeys(pieces, NORMAL)
    for token in document.get("added_tokens", ()):
        pieces[token["id"]] = token["content"]
        kinds[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    size = max(pieces) + 1
    return (
        [pieces.get(id, f"[PAD{id}]") for id in range(size)],
        [kinds.get(id, UNUSED) for id in range(size)],
    )


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = (m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"])
    return [(left, right) for left, right in pairs]


def _sentence_piece(tokenizer: HFTokenizer, document: Mapping[str, Any]) -> Vocabulary:
    """BPE over characters that falls back to bytes, whose merges are listed instead of scored."""
    model = document["model"]
    always, metaspace = _blanks(tokenizer.where, document)
    pieces, kinds = _pieces(document)
    ids = dict(zip(pieces, range(len(pieces)), strict=True))
    byte_ids = [ids.get(f"<0x{byte:02X}>") for byte in range(256)]
    if None in byte_ids or model.get("ignore_merges"):
        raise UsageError(
            f"{tokenizer.where}: expected a token for each byte, and words that merges make, got "
            f"{256 - byte_ids.count(None)} of them and ignore_merges = "
            f"{model.get('ignore_merges')}",
            hint=_HINT,
        )
    for id in byte_ids:
        kinds[id or 0] = BYTE
    unknown_id = ids.get(model.get("unk_token") or "")
    if unknown_id is not None and kinds[unknown_id] == CONTROL:
        kinds[unknown_id] = UNKNOWN
    return replace(
        _byte_level(tokenizer, pieces, kinds, _merges(model), "default"),
        model="llama", unknown_id=unknown_id, add_space_prefix=always,
        metaspace=metaspace,
    )  # fmt: skip


def _blanks(
    where: str, document: Mapping[str, Any]
) -> tuple[bool, Literal["never", "first", "always"]]:
    """Whether every text gets a blank in front, and which do only if they have none there."""
    steps, splitter = _steps(document), document.get("pre_tokenizer")
    at_blanks = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",
                 "invert": False}  # fmt: skip
    if splitter in (None, at_blanks) and steps in ([_REPLACED], [_PREPENDED, _REPLACED]):
        return steps[0] == _PREPENDED, "never"
    found = splitter or {}
    if not steps and found.get("type") == "Metaspace" and found.get("replacement") == SPACE:
        scheme = found.get("prepend_scheme")
        if scheme in ("never", "first", "always") and found.get("split") is False:
            return False, scheme
    raise UsageError(
        f"{where}: expected blanks to be spelled {SPACE} as in Llama or Gemma, got the normalizer "
        f"{document.get('normalizer')!s:.80} and the pre-tokenizer {splitter!s:.80}",
        hint=_HINT,
    )


def _steps(document: Mapping[str, Any]) -> list[Any]:
    """The steps that normalise a text."""
    normalizer = document.get("normalizer")
    steps: list[Any] = (normalizer or {}).get("normalizers", [normalizer] if normalizer else [])
    return steps


def _splitting(stated: Any) -> str | None:
    """Which of SPLITS a tokenizer.json splits as."""
    for name in ("qwen2", *SPLITS):  # which has a second name
        if stated in map(spelling, known_pre_tokenizers(name)):
            return name
    steps = stated.get("pretokenizers", []) if isinstance(stated, dict) else []
    kinds = [step.get("type") for step in steps] or [isinstance(stated, dict) and stated["type"]]
    whole = [step for step in (steps or [stated]) if step and step.get("type") == "ByteLevel"]
    if not whole or whole[0].get("add_prefix_space"):
        return None
    if kinds == ["ByteLevel"] and whole[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"]:
        return "smollm"
    patterns = tuple(s["pattern"].get("Regex") for s in steps if s["type"] == "Split")
    if kinds == ["Split"] * len(patterns) + ["ByteLevel"] and not whole[0].get("use_regex", True):
        return _HF_SPELLINGS.get(patterns)
    return None
