"""How two tokenizers of one model turn text into tokens: merges, kinds of tokens, and splitting."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, zip_longest

from lockstep.errors import InputError, UsageError
from lockstep.tokenizers import ModelTokenizer, Vocabulary, vocabulary_of
from lockstep.tokenizers.merge_order import scores_of
from lockstep.tokenizers.pre_tokenizers import SPLITS
from lockstep.tokenizers.vocabulary import NORMAL

_MOST_PIECES = 4096  # that are encoded alone; of more a sample is
_PLAIN = (  # on which llama.cpp and tokenizer.json agree where both split in one way
    "Hello world, it's 12345 o'clock; we'LL pay $1,234.50!",
    "  two blanks,\ttabs\n\n\nand lines \n  end ",
    "def f(x):\n    return x**2  # ok (42)\n",
    "naïve café, Straße, слово, 漢字かな",
)


def token_differences(ours: ModelTokenizer, theirs: ModelTokenizer) -> Iterator[str]:
    """For each fact how it differs, or nothing."""
    yield _kind_difference(ours, theirs)
    yield _encoding_difference(ours, theirs)
    try:
        a, b = vocabulary_of(ours), vocabulary_of(theirs)
    except UsageError:  # of a make that has no list of merges
        return
    if a.model == b.model == "gpt2":
        yield _split_difference(a, b)
        yield _merge_difference(a, b)
    if a.model == b.model == "llama" and a.scores and not b.scores:
        yield _score_difference(a, b)


def _kind_difference(ours: ModelTokenizer, theirs: ModelTokenizer) -> str:
    """The first token that only one side takes for a control token, or that has lost its text.

    Converters make one of whatever looks like it: `<unused7>`, `[PAD]`.
    """
    for id in range(min(ours.vocab_size, theirs.vocab_size)):
        a, b = ours.is_control(id), theirs.is_control(id)
        piece, spelled = theirs.token_bytes(id).decode("utf-8", "replace"), ours.token_bytes(id)
        looks_so = (piece.strip("▁ ")[:1], piece[-1:]) in (("<", ">"), ("[", "]"))
        if piece and not looks_so and not spelled and not b:
            return f"token {id}, {piece!r:.60}: no text, not text"
        if piece and a != b and not (a and looks_so) and spelled:
            return f"token {id}, {piece!r:.60}: {_kind(a)}, not {_kind(b)}"
    return ""


def _kind(is_control: bool) -> str:
    return "a control token" if is_control else "text"


def _encoding_difference(ours: ModelTokenizer, theirs: ModelTokenizer) -> str:
    """The first text that is other tokens: plain ones, and tokens of the original, each alone."""
    for text in (*_PLAIN, *_pieces(theirs)):
        a, b = _encoded(ours, text), _encoded(theirs, text)
        if a != b:
            return f"the text {text!r:.60}: tokens {_shown(a)}, not {_shown(b)}"
    return ""


def _pieces(tokenizer: ModelTokenizer) -> Iterator[str]:
    step = -(-tokenizer.vocab_size // _MOST_PIECES)
    for id in range(0, tokenizer.vocab_size, step):
        piece = tokenizer.token_bytes(id)
        # What is outside of ASCII may be normalised, which llama.cpp does not do.
        if piece.isascii() and not tokenizer.is_control(id):
            yield piece.decode("ascii")


def _encoded(tokenizer: ModelTokenizer, text: str) -> list[int] | None:
    try:
        return tokenizer.encode(text)
    except InputError:  # not of its alphabet
        return None


def _shown(ids: list[int] | None) -> str:
    return "none" if ids is None else f"{ids!s:.60}"


def _split_difference(ours: Vocabulary, theirs: Vocabulary) -> str:
    """Names by which texts are split in two ways; some are other names for one."""
    if SPLITS[ours.pre] == SPLITS[theirs.pre]:
        return ""
    return f"texts are split as {ours.pre}, not as {theirs.pre}"


def _score_difference(ours: Vocabulary, theirs: Vocabulary) -> str:
    """The first two pieces whose scores are in another order than the merges that make them."""
    try:
        ranks = scores_of(theirs)
    except UsageError:  # no scores can say these merges
        return ""
    pairs = enumerate(zip(ours.kinds, theirs.kinds, strict=False))
    made = [id for id, kinds in pairs if kinds == (NORMAL, NORMAL) and ranks[id] > min(ranks)]
    for first, second in pairwise(sorted(made, key=lambda id: -ranks[id])):
        if ours.scores[first] < ours.scores[second]:
            return (
                f"token {second}, {theirs.pieces[second]!r:.40}, is merged before {first}, "
                f"{theirs.pieces[first]!r:.40}: their scores are {ours.scores[second]:g} and "
                f"{ours.scores[first]:g}"
            )
    return ""


def _merge_difference(ours: Vocabulary, theirs: Vocabulary) -> str:
    for i, (a, b) in enumerate(zip_longest(ours.merges, theirs.merges)):
        if a != b:
            return f"merge {i}: {a!r:.60}, not {b!r:.60}"
    return ""
