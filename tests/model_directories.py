"""Small models of drawn weights with a tokenizer, as Hugging Face directories and as files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from family_harness import drawn_parameters
from tokenizer_files import (
    prepend_blanks,
    sentencepiece_metadata,
    sentencepiece_model,
    write_gguf,
    write_hf_tokenizer,
)
from training_run import small_corpus

from lockstep.engine.source import Source, open_source
from lockstep.families import FAMILIES, Llama3Scaling, write_parameters
from lockstep.formats.hf_directory import write_hf_directory
from lockstep.tokenizers import (
    HFTokenizer,
    hf_tokenizer_config,
    hf_tokenizer_document,
    train_tokenizer,
    vocabulary_of,
)

N_VOCAB = 320

CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "qwen2": {},
    "llama": {"scaling": Llama3Scaling(factor=8.0, low=1.0, high=4.0, original=36)},
    "gemma3": {"window": 8, "local_theta": 100.0},
    # llama.cpp has no other widths of a state than whole vectors; three value heads of a key head.
    "qwen35": {"key_heads": 2, "key_width": 32, "value_heads": 6, "value_width": 32},
}


def byte_level_directory(
    path: Path, name: str, sizes: Mapping[str, Any] | None = None, seed: int = 4
) -> Source:
    """A model of a family with a byte-level tokenizer, with the sizes in CONFIGS or others."""
    family = FAMILIES[name]
    settled = CONFIGS[name] if sizes is None else sizes
    config = replace(family.TINY, vocab=N_VOCAB, **settled)
    draw = np.random.default_rng(seed)
    arrays = {
        w.id: (1 + 0.3 * draw.standard_normal(w.shape) if len(w.shape) == 1 and "norm" in w.id
               else 0.15 * draw.standard_normal(w.shape)).astype(np.float32)
        for w in family.weights(config)
    }  # fmt: skip
    tensors = write_parameters(family.weights(config), arrays, "hf")
    write_hf_directory(path, family.to_hf(config), tensors)
    tokenizer = train_tokenizer("bpe", small_corpus().train, N_VOCAB, ["[circle]"], "gpt-2")
    vocabulary = vocabulary_of(tokenizer)
    if name == "qwen2":  # of which transformers reads its own splitting, whatever the file says
        vocabulary = replace(vocabulary, pre="qwen2")
    (path / "tokenizer.json").write_text(hf_tokenizer_document(vocabulary))
    settings = hf_tokenizer_config(vocabulary, config.context)
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return open_source(str(path))


def sentencepiece_file(path: Path, *, gemma: bool = False) -> Path:
    """A GGUF file of a Llama with such a vocabulary."""
    return write_gguf(path, sentencepiece_metadata(sentencepiece_model(gemma=gemma), gemma=gemma))


def sentencepiece_directory(path: Path, make: str) -> Path:
    """A model of the family of this make, `gemma` or `llama`, with the tokenizer of that."""
    write_hf_tokenizer(make, path)
    if make == "llama":
        prepend_blanks(path)
    family = FAMILIES[{"gemma": "gemma3"}.get(make, make)]
    config = replace(family.TINY, vocab=HFTokenizer(path).vocab_size, context=64)
    files = {file.name: file.read_bytes() for file in path.iterdir()}
    tensors = write_parameters(family.weights(config), drawn_parameters(family, config), "hf")
    write_hf_directory(path, family.to_hf(config), tensors, force=True)
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path
