"""The splitting of text before merges, under the names that GGUF has for it.

The expressions are those of llama.cpp, whose ids a GGUF file promises. Where it spells a
case-insensitive part as `'[sS]`, so is it here: `(?i:'s)` would take the long s, too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

from lockstep.errors import InputError, nearest

_ENDINGS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
PUNCTUATION = r"[\p{P}\$\+<=>\^~\|]"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"


def _words(letters: str, digits: str, others: str) -> str:
    return rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?{letters}+|{digits}| ?{others}+[\r\n]*|{_BLANKS}"


_LLAMA3 = _words(r"\p{L}", r"\p{N}{1,3}", r"[^\s\p{L}\p{N}]")
_QWEN2 = _words(r"\p{L}", r"\p{N}", r"[^\s\p{L}\p{N}]")
_QWEN35 = _words(r"[\p{L}\p{M}]", r"\p{N}", r"[^\s\p{L}\p{M}\p{N}]")

# `tokenizer.ggml.pre` -> the expressions that split the text, one after the other.
# Source: https://github.com/ggml-org/llama.cpp/blob/00ad355e009e/src/llama-vocab.cpp
SPLITS: dict[str, tuple[str, ...]] = {
    "default": (rf"{PUNCTUATION}+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    "deepseek-r1-qwen": (_QWEN2,),
    "gpt-2": (_GPT2,),
    "llama-bpe": (_LLAMA3,),
    "llama-v3": (_LLAMA3,),
    "llama3": (_LLAMA3,),
    "qwen2": (_QWEN2,),
    "qwen35": (_QWEN35,),
    "refact": (r"\p{N}", _GPT2),
    "smollm": (r"\p{N}", _GPT2),
    # Splits at runs of digits only, so merges may span quotes, blanks and brackets.
    # Where llama.cpp has \d, which to std::wregex are the digits of ASCII.
    "superbpe": (r"\p{N}+", r"(?=([0-9]{3})+(?![0-9]))"),
}
# How tokenizers of other trainers, and older ones of ours, spell the second of these: there the
# digits of all scripts are counted.
_THREES = r"(?=(\d{3})+(?!\d))"
_PART = 300  # digits, a multiple of three
# Under these names a word that is one token is that token, whatever the merges say, and the text
# begins with the beginning token.
LLAMA3_NAMES = frozenset(("llama-bpe", "llama-v3", "llama3"))


def pre_tokenizer(name: str, where: str = "tokenizer") -> Any:
    """The splitting of this name, then bytes as printable characters.

    Raises: InputError if llama.cpp's name is not one of those that are known here.
    """
    if name not in SPLITS:
        raise InputError(
            f"{where}: expected a known pre-tokenizer, got tokenizer.ggml.pre = {name!r:.60}",
            hint=f"{nearest(name, SPLITS)}use a model split as one of {', '.join(SPLITS)}",
        )
    return _steps(*SPLITS[name])


def trained_pre_tokenizer(name: str) -> Any:
    """The splitting as tokenizer.json spells it where it is trained here, with llama.cpp's ids."""
    if name == "gpt-2":
        return ByteLevel(add_prefix_space=False, use_regex=True)
    if name == "smollm":
        steps = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
        return Sequence(steps)
    return pre_tokenizer(name)


def known_pre_tokenizers(name: str) -> list[Any]:
    """All that is taken for the splitting of this name.

    One of them is not it in numbers of four digits and more of other scripts than ASCII.
    """
    found = [pre_tokenizer(name), trained_pre_tokenizer(name)]
    return [*found, _steps(r"\p{N}+", _THREES)] if name == "superbpe" else found


def counted_digits(stated: str) -> str | None:
    """Which digits a splitting counts in threes, from the JSON of it; None if it does not."""
    spelled = {r"\d": _THREES, "[0-9]": SPLITS["superbpe"][1]}
    return next((digit for digit, step in spelled.items() if json.dumps(step) in stated), None)


def _steps(*expressions: str) -> Any:
    steps = [Split(Regex(expression), "isolated") for expression in expressions]
    return Sequence([*steps, ByteLevel(add_prefix_space=False, use_regex=False)])


def number_parts(text: str, digit: str) -> Iterator[str]:
    """A text for `superbpe`, cut within very long numbers where that splits it anyway.

    Its expression looks from each digit to the end of the number; `digit` is what it counts.
    """
    begin = 0
    for number in re.finditer(f"{digit}+", text):
        rest = (number.end() - number.start()) % 3
        for at in range(number.start() + rest + _PART, number.end(), _PART):
            yield text[begin:at]
            begin = at
    yield text[begin:]
