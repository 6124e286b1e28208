"""What `lockstep inspect` says of a model: what it takes, how fast it can be, why it cannot run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import gguf
import numpy as np
import pytest
import safetensors.numpy
import tokenizers
from family_harness import drawn_parameters
from gguf_models import convertible, write_gguf
from opened_models import CONFIG, FAMILY, PRE, letters_of, model_folder, spelled, with_builds

from lockstep.cli.main import main
from lockstep.engine import model as engine_model
from lockstep.engine.inspection import running
from lockstep.engine.model import Capacity, open_model
from lockstep.engine.source import open_source
from lockstep.families import FAMILIES, write_parameters
from lockstep.formats.gguf import GGUFFile
from lockstep.ir import CacheKind
from lockstep.native import read_rate

pytestmark = pytest.mark.usefixtures("quick_builds")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("models"))


@pytest.fixture
def home(home: Path, _shared_home: Path) -> Path:
    return with_builds(home, _shared_home)


def inspected(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict]:
    code = main(["inspect", *arguments, "--json"])
    return code, json.loads(capfd.readouterr().out)


@pytest.mark.parametrize("kind", get_args(CacheKind))
def test_a_cache_of_each_kind_is_as_large_as_it_says(
    kind: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Elements of a position, their scales (one of 32) in halves, and the padding to 16 rows."""
    path = str(folder / "model.gguf")
    assert main(["inspect", path, "--json", "--ctx=32", "--depth=32", f"--kv={kind}"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["cache"] == kind
    n_bytes = {"f32": 4, "f16": 2, "q8_0": 1}[kind]
    per_head = CONFIG.head_dim * n_bytes + (2 * -(-CONFIG.head_dim // 32) if kind == "q8_0" else 0)
    assert found["cache_bytes_per_token"] == 2 * CONFIG.layers * 32 * CONFIG.kv_heads * per_head


def test_inspect_says_what_a_token_reads_and_the_speed_that_follows(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, found = inspected(capfd, str(folder / "model.gguf"), "--ctx=16", "--depth=8")
    assert code == 0
    assert found["runs"]
    assert found["family"] == "qwen3"
    file = GGUFFile(folder / "model.gguf")
    assert {t["name"]: t["stored"] for t in found["tensors"]} == dict(file.stored)
    weights = sum(np.prod(shape) for shape in file.shapes.values()) * 4
    assert weights <= found["weight_bytes_per_token"] < 1.5 * weights, "panels have spare columns"
    assert found["cache_bytes_per_token"] == CONFIG.layers * 2 * 8 * CONFIG.kv_width * 4
    rate = found["read_bytes_per_second"]
    assert found["bound_tokens_per_second"] == pytest.approx(rate / found["bytes_per_token"])


def test_inspect_says_why_a_model_does_not_run(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = (folder / "model.gguf").read_bytes().replace(b"qwen3", b"qwen9")
    (tmp_path / "model.gguf").write_bytes(data)
    code, found = inspected(capfd, str(tmp_path / "model.gguf"))
    assert code == 4
    assert found["runs"] is False
    assert "qwen9" in found["reason"]
    assert len(found["tensors"]) == len(FAMILY.weights(CONFIG))
    assert found["read_bytes_per_second"] is None


def test_inspect_refuses_a_tokenizer_that_run_refuses(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = (folder / "model.gguf").read_bytes()
    assert data.count(PRE.encode()) == 1
    path = tmp_path / "model.gguf"
    path.write_bytes(data.replace(PRE.encode(), b"gpt-9"))
    assert main(["run", str(path), "-p", "x"]) == 4
    assert "gpt-9" in capfd.readouterr().err
    code, found = inspected(capfd, str(path))
    assert (code, found["runs"]) == (4, False)
    assert "gpt-9" in found["reason"]
    assert found["tensors"]


def test_inspect_refuses_a_name_that_is_too_long_as_run_does(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / ("a" * 300))
    said = []
    for arguments in (["run", path, "-p", "x"], ["inspect", path]):
        assert main(arguments) == 4
        said.append(capfd.readouterr().err)
    assert said[0] == said[1]


def written(path: Path, hf: dict[str, np.ndarray], vocab: int, template: str = "") -> Path:
    """A GGUF file with these tensors and a tokenizer of so many ids."""

    def add(writer: gguf.GGUFWriter) -> None:
        spelled(vocab)(writer)
        if template:
            writer.add_chat_template(template)

    write_gguf(FAMILY, CONFIG, path, hf, add)
    return path


@pytest.mark.parametrize("fault", ["tokenizer", "gain", "template", "merges", "compiler"])
def test_inspect_refuses_what_run_refuses_for_the_same_reason(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    hf = dict(write_parameters(FAMILY.weights(CONFIG), drawn_parameters(FAMILY, CONFIG), "hf"))
    vocab, template = CONFIG.vocab, ""
    if fault == "tokenizer":
        vocab += 1
    elif fault == "gain":
        hf["model.norm.weight"] = np.full_like(hf["model.norm.weight"], np.nan)
    elif fault == "template":
        template = "{% for m in messages %}"
    elif fault == "compiler":
        monkeypatch.setenv("CC", str(tmp_path / "no-such-cc"))
    path = written(tmp_path / "model.gguf", hf, vocab, template)
    if fault == "merges":
        data = path.read_bytes()
        assert data.count(b"tokenizer.ggml.merges") == 1
        path.write_bytes(data.replace(b"tokenizer.ggml.merges", b"tokenizer.ggml.mergez"))
    code = main(["run", str(path), "-p", "!", "-n", "1", "--ctx=16"])
    said = capfd.readouterr().err
    assert code == (3 if fault == "compiler" else 4)
    found_code, found = inspected(capfd, str(path), "--ctx=16")
    assert (found_code, found["runs"]) == (code, False)
    assert found["reason"].splitlines()[0] in said


def with_tokenizer(folder: Path, tmp_path: Path, vocab: int) -> Path:
    """The directory with a byte-level tokenizer of so many ids."""
    path = tmp_path / "hf"
    shutil.copytree(folder / "hf", path)
    made = tokenizers.Tokenizer(tokenizers.models.BPE(*letters_of(vocab)))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.save(str(path / "tokenizer.json"))
    return path


def test_a_control_token_without_a_row_keeps_no_model_from_running(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The tokenizer of the small Gemma 3 has a token for images behind its last row."""
    path = with_tokenizer(folder, tmp_path, CONFIG.vocab)
    made = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    made.add_special_tokens(["<image>"])
    made.save(str(path / "tokenizer.json"))
    code, found = inspected(capfd, str(path), "--ctx=16")
    assert (code, found["reason"]) == (0, None)
    assert main(["run", str(path), "-p", "!", "-n", "1", "--ctx=16"]) == 0
    capfd.readouterr()
    made.add_tokens(["words"])
    made.save(str(path / "tokenizer.json"))
    code, found = inspected(capfd, str(path), "--ctx=16")
    assert (code, found["runs"]) == (4, False)
    assert f"expected ids below {CONFIG.vocab}" in found["reason"]
    assert "'words'" in found["reason"]


def test_inspect_refuses_a_head_that_is_not_the_tied_table(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = with_tokenizer(folder, tmp_path, CONFIG.vocab)
    tensors = safetensors.numpy.load_file(path / "model.safetensors")
    other = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}
    safetensors.numpy.save_file(other, path / "model.safetensors")
    assert main(["run", str(path), "-p", "!", "-n", "1", "--ctx=16"]) == 4
    assert "lm_head.weight: expected a copy" in capfd.readouterr().err
    code, found = inspected(capfd, str(path), "--ctx=16")
    assert (code, found["runs"]) == (4, False)
    assert "lm_head.weight: expected a copy" in found["reason"]


def test_inspect_refuses_what_does_not_fit_as_run_does(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine_model, "available_bytes", lambda: 1000)
    code, found = inspected(capfd, str(folder / "model.gguf"), "--ctx=16")
    assert (code, found["runs"]) == (5, False)
    assert "this machine has 0 MiB left" in found["reason"]
    assert found["tensors"]


def test_the_plan_that_inspect_counts_is_the_memory_that_run_takes(folder: Path) -> None:
    path = str(folder / "model.gguf")
    room = Capacity(context=16)
    planned, taken = running(open_source(path), room), open_model(path, room)
    assert planned.shape == taken.session.shape
    arenas = taken.built.program.manifest.arenas
    assert {name: n for name, n in planned.plan.arenas.items() if n} == {
        arena.name: arena.n_bytes for arena in arenas if arena.n_bytes
    }


@pytest.mark.torch
def test_a_layer_with_a_window_reads_no_more_of_its_caches_than_that(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Counted layer by layer from the settings that transformers reads, in halves."""
    transformers = pytest.importorskip("transformers")
    family, depth = FAMILIES["gemma3"], 32
    config = convertible(family, family.TINY)
    hf = write_parameters(family.weights(config), drawn_parameters(family, config), "hf")
    path = tmp_path / "gemma.gguf"
    write_gguf(family, config, path, hf, spelled(config.vocab))
    theirs = transformers.Gemma3TextConfig(**family.to_hf(config))
    window = theirs.sliding_window
    seen = {"sliding_attention": min(depth, window), "full_attention": depth}
    assert window < depth
    assert set(theirs.layer_types) == set(seen)
    row = 2 * theirs.num_key_value_heads * theirs.head_dim * 2
    flags = (f"--ctx={depth}", f"--depth={depth}", "--kv=f16")
    code, found = inspected(capfd, str(path), *flags)
    assert code == 0
    assert found["cache_bytes_per_token"] == row * sum(seen[kind] for kind in theirs.layer_types)


def test_inspect_says_the_rest_where_there_is_no_memory_to_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(read_rate, "BYTES", 1 << 60)
    assert main(["inspect", str(folder / "model.gguf")]) == 0
    out = capfd.readouterr().out
    assert "speed bound: not measured: memory: expected room for" in out
    assert "runs here: yes" in out
    assert "memory plan" in out


def test_a_bound_is_the_best_of_some_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    def read_seconds(address: Any, count: Any, threads: Any) -> float:
        return next(taken)

    taken = iter([4.0, 1.0, 2.0, 3.0, 5.0])
    library = SimpleNamespace(read_seconds=read_seconds)
    monkeypatch.setattr(read_rate.ctypes, "CDLL", lambda path: library)
    monkeypatch.setattr(read_rate, "BYTES", 1 << 12)
    assert read_rate.read_rate(1) == (1 << 12) / 1.0
