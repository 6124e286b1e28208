"""The side of a model that is text: its tokenizer and its chat templates, wherever it lies."""

from __future__ import annotations

from lockstep.artifacts import RunDir
from lockstep.engine.source import Source
from lockstep.tokenizers import (
    GGUFTokenizer,
    HFTokenizer,
    ModelTemplates,
    ModelTokenizer,
    Tokenizer,
    templates_of_directory,
    templates_of_gguf,
)


def open_tokenizer(source: Source) -> ModelTokenizer:
    """The tokenizer of a GGUF file, of a Hugging Face directory or of a run.

    Raises: InputError if it is missing, damaged or of a make that is not known.
    """
    if source.gguf is not None:
        return GGUFTokenizer.read(source.gguf.metadata, source.where)
    if source.hf is not None:
        return HFTokenizer(source.path)
    assert source.weights is not None
    file = RunDir(source.path).tokenizer
    return Tokenizer.load(file, expect_sha256=source.weights.tokenizer_sha256)


def open_templates(source: Source, tokenizer: ModelTokenizer) -> ModelTemplates:
    """The chat templates that come with a model; a run has none.

    Raises: InputError if a file with one is damaged.
    """
    if source.gguf is not None:
        return templates_of_gguf(source.gguf.metadata, tokenizer, source.where)
    if source.hf is not None:
        return templates_of_directory(source.path)
    return ModelTemplates(where=source.where)
