"""Models with the tokenizers of Llama and of Gemma, exported and proved to every reader."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
from model_directories import sentencepiece_directory, sentencepiece_file

from lockstep.cli.main import main

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("quick_builds")]


def verdicts(capfd: pytest.CaptureFixture[str], *args: str) -> dict[str, str]:
    """What is proved of an export that is kept."""
    code = main(["export", *args, "--json"])
    out, err = capfd.readouterr()
    assert code == 0, err + out
    return {check["id"]: check["verdict"] for check in json.loads(out)["checks"]}


@pytest.mark.parametrize("make", ["gemma", pytest.param("llama", marks=pytest.mark.slow)])
def test_a_directory_with_merges_becomes_a_file_with_scores(
    make: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp is in the extra dev")
    model, path = sentencepiece_directory(tmp_path / "model", make), tmp_path / "m.gguf"
    found = verdicts(capfd, str(model), "--to", "gguf", "-o", str(path))
    assert set(found.values()) == {"pass"}
    assert {"tokenizer", "tokenizer_llama_cpp", "greedy_llama_cpp"} <= set(found)
    fields = gguf.GGUFReader(path).fields
    assert fields["tokenizer.ggml.model"].contents() == "llama"
    assert fields["tokenizer.ggml.add_space_prefix"].contents() is (make == "llama")
    assert "tokenizer.ggml.merges" not in fields


@pytest.mark.parametrize("gemma", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_file_with_scores_becomes_a_directory_with_merges(
    gemma: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model, path = sentencepiece_file(tmp_path / "m.gguf", gemma=gemma), tmp_path / "hf"
    found = verdicts(capfd, str(model), "--to", "hf", "-o", str(path))
    assert set(found.values()) == {"pass"}
    assert {"tokenizer", "tokenizer_transformers", "greedy_transformers"} <= set(found)
    document = json.loads((path / "tokenizer.json").read_text())
    assert document["model"]["byte_fallback"]
    assert document["model"]["merges"]


def test_a_blank_that_gguf_cannot_say_is_said_and_leaves_no_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = sentencepiece_directory(tmp_path / "model", "llama")
    document = json.loads((model / "tokenizer.json").read_text())
    document["normalizer"] = None
    document["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁",
                                 "prepend_scheme": "first", "split": False}  # fmt: skip
    (model / "tokenizer.json").write_text(json.dumps(document))
    assert main(["export", str(model), "--to", "gguf", "-o", str(tmp_path / "m.gguf")]) == 2
    assert "one in front of the first text only, if it has none" in capfd.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"model", "llama.model"}
