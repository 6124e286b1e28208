"""Every family written as GGUF, and read by llama.cpp and transformers as the model that it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from model_directories import CONFIGS, byte_level_directory

from lockstep.engine.export_gguf import ExportType, export_gguf
from lockstep.engine.export_hf import export_hf
from lockstep.engine.source import open_source
from lockstep.proof.export import prove_gguf, prove_hf

pytestmark = [pytest.mark.slow, pytest.mark.torch]


@pytest.mark.parametrize(
    ("name", "wanted"), [*((name, "F32") for name in CONFIGS), ("qwen35", "Q8_0")]
)
def test_a_family_as_gguf_is_the_model_to_llama_cpp(
    tmp_path: Path, name: str, wanted: ExportType
) -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp is in the extra dev")
    source = byte_level_directory(tmp_path / "hf", name)
    export_gguf(source, tmp_path / "m.gguf", wanted)
    checks = prove_gguf(source, tmp_path / "m.gguf", wanted)
    assert {check.verdict for check in checks} == {"pass"}, checks
    assert "logits_llama_cpp" in {check.id for check in checks}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_family_from_gguf_is_the_model_to_transformers(tmp_path: Path, name: str) -> None:
    export_gguf(byte_level_directory(tmp_path / "hf", name), tmp_path / "m.gguf", "F32")
    source = open_source(str(tmp_path / "m.gguf"))
    export_hf(source, tmp_path / "again")
    checks = prove_hf(source, tmp_path / "again")
    assert {check.verdict for check in checks} == {"pass"}, checks
    assert "greedy_transformers" in {check.id for check in checks}
