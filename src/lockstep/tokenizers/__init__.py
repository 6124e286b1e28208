"""Tokenizers: BPE training, one id for each control tag, exact round trips."""

from lockstep.tokenizers.round_trip import RoundTrip, RowTrip, round_trip
from lockstep.tokenizers.tokenizer import FILE, Tokenizer
from lockstep.tokenizers.train import MAX_VOCAB, train_tokenizer
from lockstep.tokenizers.types import KINDS, PRE_TOKENIZERS, Kind, PreTokenizer

__all__ = [
    "FILE",
    "KINDS",
    "MAX_VOCAB",
    "PRE_TOKENIZERS",
    "Kind",
    "PreTokenizer",
    "RoundTrip",
    "RowTrip",
    "Tokenizer",
    "round_trip",
    "train_tokenizer",
]
