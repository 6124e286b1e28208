"""Training a tokenizer on the rows of a corpus."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

import tokenizers
from tokenizers import AddedToken, decoders, models, trainers

from lockstep.errors import InputError, UsageError
from lockstep.tokenizers.pre_tokenizers import trained_pre_tokenizer
from lockstep.tokenizers.tokenizer import Tokenizer
from lockstep.tokenizers.types import (
    Kind,
    PreTokenizer,
    alphabet,
    check_text,
)

MAX_VOCAB = 1 << 20  # the library sets aside memory for all of it, and aborts if it cannot
_TAG = re.compile(r"\[[^\[\]\s]+\]")


def train_tokenizer(
    kind: Kind, rows: Sequence[str], vocab_size: int, tags: Sequence[str],
    splitting: PreTokenizer = "superbpe", *, eos: str = "<eos>",
) -> Tokenizer:  # fmt: skip
    """A tokenizer of at most `vocab_size` ids: the alphabet, merges, the tags, the end token.

    Raises: InputError if a row is outside the alphabet; UsageError if the size is too small for it
    all, or larger than the library bears.
    """
    _check_tags(tags, eos)
    if not rows:
        raise InputError("tokenizer: expected rows to train on, got none", hint="check the corpus")
    for i, row in enumerate(rows, start=1):
        check_text(row, kind, f"row {i}")
    if vocab_size > MAX_VOCAB:
        raise UsageError(
            f"tokenizer: expected a vocabulary of at most {MAX_VOCAB}, got {vocab_size}",
            hint="lower the vocabulary size",
        )
    letters = alphabet(kind)
    n_merged = vocab_size - len(tags) - 1
    if n_merged < len(letters):
        raise UsageError(
            f"tokenizer: expected a vocabulary of at least {len(letters) + len(tags) + 1}, "
            f"got {vocab_size}",
            hint="raise the vocabulary size",
        )
    built = tokenizers.Tokenizer(models.BPE())
    built.pre_tokenizer = trained_pre_tokenizer(splitting)
    built.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_merged, min_frequency=2, initial_alphabet=letters, show_progress=False
    )
    built.train_from_iterator(_between_tags(rows, tags, eos), trainer)
    # After training: tokens that are added before it collide with ids of the alphabet.
    built.add_tokens([AddedToken(tag, normalized=False) for tag in tags])
    built.add_special_tokens([AddedToken(eos, normalized=False, special=True)])
    return Tokenizer(built.to_str())


def _check_tags(tags: Sequence[str], eos: str) -> None:
    """Brackets without brackets inside: then no order of matching can tell two readers apart."""
    wrong = [tag for tag in tags if not _TAG.fullmatch(tag) or not tag.isascii()]
    if wrong or len({*tags, eos}) != len(tags) + 1:
        raise UsageError(
            f"tokenizer: expected different tags such as [circle], got {' '.join(tags):.120}",
            hint="write each tag once, in ASCII, in square brackets",
        )


def _between_tags(rows: Iterable[str], tags: Sequence[str], eos: str) -> Iterator[str]:
    """The text between control tokens, so that no merge is spent on them."""
    control = re.compile("|".join(map(re.escape, (*tags, eos))))
    for row in rows:
        yield from filter(None, control.split(row))
