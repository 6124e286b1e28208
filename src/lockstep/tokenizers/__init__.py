"""Tokenizers: trained here, or of other people's models; chat templates."""

from lockstep.tokenizers.gguf_tokenizer import GGUFTokenizer
from lockstep.tokenizers.model_tokenizer import ModelTokenizer, Part, decode
from lockstep.tokenizers.round_trip import RoundTrip, RowTrip, round_trip
from lockstep.tokenizers.tokenizer import FILE, Tokenizer
from lockstep.tokenizers.train import MAX_VOCAB, train_tokenizer
from lockstep.tokenizers.types import KINDS, PRE_TOKENIZERS, Kind, PreTokenizer

__all__ = [
    "FILE",
    "KINDS",
    "MAX_VOCAB",
    "PRE_TOKENIZERS",
    "GGUFTokenizer",
    "Kind",
    "ModelTokenizer",
    "Part",
    "PreTokenizer",
    "RoundTrip",
    "RowTrip",
    "Tokenizer",
    "decode",
    "round_trip",
    "train_tokenizer",
]
