"""A model written as a Hugging Face directory: config, weights of one type, tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from lockstep.engine.source import Source
from lockstep.engine.text import open_templates, open_tokenizer
from lockstep.formats.atomic import sync
from lockstep.formats.hf_directory import write_hf_directory
from lockstep.formats.to_write import TensorToWrite
from lockstep.tokenizers import (
    ModelTokenizer,
    Tokenizer,
    hf_tokenizer_config,
    hf_tokenizer_document,
    vocabulary_of,
)

HFType = Literal["F32", "F16", "BF16"]
HF_TYPES: tuple[HFType, ...] = get_args(HFType)
_NAMES: dict[HFType, str] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("chat_template.jinja", "additional_chat_templates/*.jinja"),
)


def export_hf(source: Source, path: Path, wanted: HFType = "F32") -> None:
    """Writes a model into a directory that is not there yet.

    Raises: UsageError if the tokenizer has no spelling in tokenizer.json; InputError if a number
    does not fit the type.
    """
    source, tokenizer = source.in_hf_order(), open_tokenizer(source)
    beside = _beside(source, tokenizer)
    model = source.model
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    config = {**model.family.to_hf(model.config), **ids, "torch_dtype": _NAMES[wanted]}
    write_hf_directory(path, config, hf_tensors(source, wanted))
    for name, text in beside.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(text, encoding="utf-8")
        sync(path / name)


def hf_tensors(source: Source, wanted: HFType) -> dict[str, TensorToWrite]:
    """The tensors by Hugging Face's names, each made when its turn has come."""
    tensors = {}
    for weight in source.model.family.weights(source.model.config):

        def rows(id: str = weight.id, form: Any = weight.hf_form) -> Any:
            return np.ascontiguousarray(form.stored(source.parameters.f32(id)), np.float32)

        shape = weight.hf_form.shape(weight.shape)
        tensors[weight.hf] = TensorToWrite(shape, weight.written_as("hf", wanted), rows)
    return tensors


def _beside(source: Source, tokenizer: ModelTokenizer) -> Mapping[str, str]:
    """The texts of the files beside the weights."""
    generation: dict[str, Any] = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": sorted(tokenizer.stop_ids),
        "do_sample": False,
    }
    texts = {"generation_config.json": _json(generation)}
    if source.hf is not None:
        found = (file for name in TOKENIZER_FILES for file in source.path.glob(name))
        own_texts = {str(f.relative_to(source.path)): f.read_text(encoding="utf-8") for f in found}
        return texts | own_texts
    vocabulary = vocabulary_of(tokenizer)
    texts["tokenizer.json"] = (
        tokenizer.document
        if isinstance(tokenizer, Tokenizer)
        else hf_tokenizer_document(vocabulary)
    )
    templates = open_templates(source, tokenizer).named
    settings = hf_tokenizer_config(vocabulary, source.model.config.context, templates)
    return texts | {"tokenizer_config.json": _json(settings)}


def _json(document: Mapping[str, Any]) -> str:
    return json.dumps(dict(document), indent=2) + "\n"
