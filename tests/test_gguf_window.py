"""Windows of Qwen and GGUF: llama.cpp reads no key of one, so neither is one written nor passed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from model_directories import byte_level_directory

from lockstep.cli.main import main
from lockstep.engine.export_gguf import gguf_metadata, gguf_tensors
from lockstep.engine.source import Source, open_gguf
from lockstep.errors import InputError, UsageError
from lockstep.formats.gguf_write import write_gguf
from lockstep.oracle.llama_cpp import ask_llama_cpp

NAMES = ("qwen2", "qwen3")
WINDOW = 5
PROMPT = range(3, 27)  # longer than the window


def windowed_file(source: Source, path: Path, window: int | None) -> Path:
    """The model as a file that says a window for its layers from the second on."""
    name, layers = source.model.family.name, source.model.config.layers
    metadata = gguf_metadata(source, "F32")
    if window is not None:
        metadata[f"{name}.attention.sliding_window"] = window
        if name in NAMES:  # else the model has one already
            pattern = np.arange(layers) > 0
            metadata[f"{name}.attention.sliding_window_pattern"] = pattern
    write_gguf(path, metadata, gguf_tensors(source, "F32"))
    return path


def log_probabilities(source: Source, path: Path) -> dict[int, float]:
    """What llama.cpp says of the token behind the prompt."""
    told = ask_llama_cpp(path, list(PROMPT), 1, [], source.model.config.vocab)
    return told.log_probabilities[0]


@pytest.mark.parametrize(
    ("name", "is_read"), [*((name, False) for name in NAMES), ("gemma3", True)]
)
def test_llama_cpp_reads_no_window_of_qwen(name: str, is_read: bool, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp is in the extra dev")
    source = byte_level_directory(tmp_path / "hf", name)
    files = [
        windowed_file(source, tmp_path / f"{window}.gguf", window) for window in (None, WINDOW)
    ]
    whole, windowed = (log_probabilities(source, path) for path in files)
    assert len(whole) > 100
    assert (whole != windowed) is is_read


@pytest.mark.parametrize("name", NAMES)
def test_a_window_is_not_written_and_it_is_said_why(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = byte_level_directory(tmp_path / "hf", name)
    config = replace(source.model.config, window=WINDOW, windowed_from=1)
    windowed = replace(source, model=replace(source.model, config=config))
    said = f"layers 1 to 1 that see the last {WINDOW}: llama.cpp reads no window for {name}"
    with pytest.raises(UsageError, match=said):
        gguf_metadata(windowed, "F32")
    text = (tmp_path / "hf" / "config.json").read_text()
    keys = f'"sliding_window": {WINDOW}, "max_window_layers": 1'
    on = text.replace('"use_sliding_window": false', f'"use_sliding_window": true, {keys}')
    assert on != text
    (tmp_path / "hf" / "config.json").write_text(on)
    out = str(tmp_path / "m.gguf")
    assert main(["export", str(tmp_path / "hf"), "--to", "gguf", "-o", out]) == 2
    err = capfd.readouterr().err
    assert said in err
    assert "--to hf or --to c" in err
    assert not Path(out).exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_says_a_window_is_read_only_if_it_hides_nothing(
    name: str, tmp_path: Path
) -> None:
    source = byte_level_directory(tmp_path / "hf", name)
    context = source.model.config.context
    with pytest.raises(InputError) as caught:
        open_gguf(windowed_file(source, tmp_path / "less.gguf", context - 1))
    assert f"{name}.attention.sliding_window: expected none below" in caught.value.message
    assert "llama.cpp reads no window" in caught.value.message
    opened = open_gguf(windowed_file(source, tmp_path / "all.gguf", context))
    assert opened.model.config.window == 0
