"""Tokenizers: trained here, or of other people's models; chat templates."""

from lockstep.tokenizers.chat import (
    BUILT_IN,
    ChatTemplate,
    Message,
    ModelTemplates,
    TemplateSource,
    choose_template,
    templates_of_directory,
    templates_of_gguf,
)
from lockstep.tokenizers.chat_renderer import ChatRenderer
from lockstep.tokenizers.gguf_tokenizer import GGUFTokenizer
from lockstep.tokenizers.hf_tokenizer import HFTokenizer
from lockstep.tokenizers.model_tokenizer import ModelTokenizer, Part, begin_ids, decode, end_ids
from lockstep.tokenizers.round_trip import RoundTrip, RowTrip, round_trip
from lockstep.tokenizers.tokenizer import FILE, Tokenizer
from lockstep.tokenizers.train import MAX_VOCAB, train_tokenizer
from lockstep.tokenizers.types import KINDS, PRE_TOKENIZERS, Kind, PreTokenizer
from lockstep.tokenizers.vocabulary import Vocabulary
from lockstep.tokenizers.vocabulary_c import c_unicode, c_vocabulary
from lockstep.tokenizers.vocabulary_of import padded, vocabulary_of
from lockstep.tokenizers.vocabulary_out import (
    gguf_tokenizer_metadata,
    hf_tokenizer_config,
    hf_tokenizer_document,
    unread_ends,
)

__all__ = [
    "BUILT_IN",
    "FILE",
    "KINDS",
    "MAX_VOCAB",
    "PRE_TOKENIZERS",
    "ChatRenderer",
    "ChatTemplate",
    "GGUFTokenizer",
    "HFTokenizer",
    "Kind",
    "Message",
    "ModelTemplates",
    "ModelTokenizer",
    "Part",
    "PreTokenizer",
    "RoundTrip",
    "RowTrip",
    "TemplateSource",
    "Tokenizer",
    "Vocabulary",
    "begin_ids",
    "c_unicode",
    "c_vocabulary",
    "choose_template",
    "decode",
    "end_ids",
    "gguf_tokenizer_metadata",
    "hf_tokenizer_config",
    "hf_tokenizer_document",
    "padded",
    "round_trip",
    "templates_of_directory",
    "templates_of_gguf",
    "train_tokenizer",
    "unread_ends",
    "vocabulary_of",
]
