"""The side of a model that is text: its tokenizer and its chat templates, wherever it lies."""

from __future__ import annotations

from lockstep.artifacts import RunDir
from lockstep.engine.source import Source
from lockstep.errors import InputError
from lockstep.tokenizers import (
    ChatRenderer,
    ChatTemplate,
    GGUFTokenizer,
    HFTokenizer,
    ModelTemplates,
    ModelTokenizer,
    Tokenizer,
    begin_ids,
    choose_template,
    templates_of_directory,
    templates_of_gguf,
)


def open_tokenizer(source: Source) -> ModelTokenizer:
    """The tokenizer of a GGUF file, of a Hugging Face directory or of a run.

    Raises: InputError if it is missing, damaged, of a make that is not known, or of another model.
    """
    tokenizer = _tokenizer(source)
    _expect_rows(tokenizer, source.model.config.vocab)
    return tokenizer


def _tokenizer(source: Source) -> ModelTokenizer:
    if source.gguf is not None:
        return GGUFTokenizer.read(source.gguf.metadata, source.where)
    if source.hf is not None:
        return HFTokenizer(source.path)
    assert source.weights is not None
    file = RunDir(source.path).tokenizer
    return Tokenizer.load(file, expect_sha256=source.weights.tokenizer_sha256)


def _expect_rows(tokenizer: ModelTokenizer, n_rows: int) -> None:
    """Insists that the embedding table has a row for every id that a user's text can have.

    Control tokens may lie beyond: the small Gemma 3 names one for images, which it has no row for.
    """
    beyond = range(n_rows, tokenizer.vocab_size)
    texts = (id for id in beyond if tokenizer.token_bytes(id) and not tokenizer.is_control(id))
    begins = (id for id in begin_ids(tokenizer) if id >= n_rows)
    found = next(texts, next(begins, None))
    if found is not None:
        piece = tokenizer.token_bytes(found).decode("utf-8", "replace")
        raise InputError(
            f"{tokenizer.where}: expected ids below {n_rows}, the rows of the embedding table, "
            f"got {found} for {piece!r:.60}",
            hint="use the tokenizer that belongs to this model",
        )


def open_templates(source: Source, tokenizer: ModelTokenizer) -> ModelTemplates:
    """The chat templates that come with a model; a run has none.

    Raises: InputError if a file with one is damaged.
    """
    if source.gguf is not None:
        return templates_of_gguf(source.gguf.metadata, tokenizer, source.where)
    if source.hf is not None:
        return templates_of_directory(source.path)
    return ModelTemplates(where=source.where)


def expect_template(templates: ModelTemplates) -> None:
    """Insists that the template of a chat, if the model has templates, is one that can be read.

    Raises: UsageError if a chat has to name one; InputError if it is no template.
    """
    if templates.named:
        with ChatRenderer() as renderer:
            ChatTemplate(choose_template(templates, None), templates, renderer)
