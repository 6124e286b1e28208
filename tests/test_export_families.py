"""Every family written as GGUF, and read by llama.cpp and transformers as the model that it was."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_run import small_corpus

from lockstep.engine.export_gguf import ExportType, export_gguf
from lockstep.engine.export_hf import export_hf
from lockstep.engine.source import Source, open_source
from lockstep.families import FAMILIES, Llama3Scaling, write_parameters
from lockstep.formats.hf_directory import write_hf_directory
from lockstep.proof.export import prove_gguf, prove_hf
from lockstep.tokenizers import (
    hf_tokenizer_config,
    hf_tokenizer_document,
    train_tokenizer,
    vocabulary_of,
)

pytestmark = [pytest.mark.slow, pytest.mark.torch]
N_VOCAB = 320

CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "qwen2": {},
    "llama": {"scaling": Llama3Scaling(factor=8.0, low=1.0, high=4.0, original=36)},
    "gemma3": {"window": 8, "local_theta": 100.0},
    # llama.cpp has no other widths of a state than whole vectors; three value heads of a key head.
    "qwen35": {"key_heads": 2, "key_width": 32, "value_heads": 6, "value_width": 32},
}


def directory(path: Path, name: str) -> Source:
    """A small model of a family, of drawn weights, with a byte-level tokenizer."""
    family = FAMILIES[name]
    config = dataclasses.replace(family.TINY, vocab=N_VOCAB, **CONFIGS[name])
    draw = np.random.default_rng(4)
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
        vocabulary = dataclasses.replace(vocabulary, pre="qwen2")
    (path / "tokenizer.json").write_text(hf_tokenizer_document(vocabulary))
    settings = hf_tokenizer_config(vocabulary, config.context)
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return open_source(str(path))


@pytest.mark.parametrize(
    ("name", "wanted"), [*((name, "F32") for name in CONFIGS), ("qwen35", "Q8_0")]
)
def test_a_family_as_gguf_is_the_model_to_llama_cpp(
    tmp_path: Path, name: str, wanted: ExportType
) -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp is in the extra dev")
    source = directory(tmp_path / "hf", name)
    export_gguf(source, tmp_path / "m.gguf", wanted)
    checks = prove_gguf(source, tmp_path / "m.gguf", wanted)
    assert {check.verdict for check in checks} == {"pass"}, checks
    assert "logits_llama_cpp" in {check.id for check in checks}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_family_from_gguf_is_the_model_to_transformers(tmp_path: Path, name: str) -> None:
    export_gguf(directory(tmp_path / "hf", name), tmp_path / "m.gguf", "F32")
    source = open_source(str(tmp_path / "m.gguf"))
    export_hf(source, tmp_path / "again")
    checks = prove_hf(source, tmp_path / "again")
    assert {check.verdict for check in checks} == {"pass"}, checks
    assert "greedy_transformers" in {check.id for check in checks}
