"""Models opened from files: packed once, read back after that, refused with reasons."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import get_args

import gguf
import numpy as np
import pytest
import safetensors.numpy
from family_harness import drawn_parameters
from gguf_models import write_gguf
from opened_models import CONFIG, FAMILY, model_folder, spelled, with_builds

from lockstep.cli.main import main
from lockstep.engine import model as engine_model
from lockstep.engine import packed
from lockstep.engine.model import Capacity, OpenModel, open_model
from lockstep.engine.source import open_source
from lockstep.errors import BudgetError, InputError, UsageError
from lockstep.families import write_parameters
from lockstep.formats.gguf import GGUFFile
from lockstep.formats.hf_directory import write_hf_directory
from lockstep.ir import CacheKind
from lockstep.ops import panels

pytestmark = pytest.mark.usefixtures("quick_builds")

IDS = [3, 1, 4, 1, 5]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("models"))


@pytest.fixture
def home(home: Path, _shared_home: Path) -> Path:
    return with_builds(home, _shared_home)


def opened(path: Path) -> OpenModel:
    return open_model(str(path), Capacity(context=16, rows=8))


def logits(model: OpenModel) -> bytes:
    return model.session.prefill(IDS).tobytes()


def test_a_directory_and_the_file_made_of_it_give_the_same_bits(folder: Path) -> None:
    assert logits(opened(folder / "hf")) == logits(opened(folder / "model.gguf"))


@pytest.mark.parametrize("chunk", [1 << 26, 1 << 10], ids=["in one", "in many chunks"])
def test_a_second_start_reads_the_packed_weights_back(
    chunk: int, folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "SUM_BYTES", chunk // 8)
    monkeypatch.setattr(packed, "_CHUNK_BYTES", chunk)
    first, second = opened(folder / "model.gguf"), opened(folder / "model.gguf")
    assert (first.filled.from_cache, second.filled.from_cache) == (False, True)
    assert first.filled.n_bytes == second.filled.n_bytes > 0
    assert logits(first) == logits(second)


def test_packed_weights_that_were_not_used_for_longest_make_room(
    folder: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = [tmp_path / f"{name}.gguf" for name in "abc"]
    for copy in copies:
        copy.write_bytes((folder / "model.gguf").read_bytes() + copy.name.encode())
    n_bytes = max(opened(copy).filled.n_bytes for copy in copies[:2])
    monkeypatch.setattr(packed, "_MOST_BYTES", 2 * n_bytes)
    for i, weights in enumerate(sorted((home / "build").glob("*.weights"))):
        os.utime(weights, (i, i))  # long ago: the clock of a file system may tick too slowly
    assert opened(copies[0]).filled.from_cache, "and is now the one that was used last"
    assert not opened(copies[2]).filled.from_cache
    assert opened(copies[0]).filled.from_cache
    assert not opened(copies[1]).filled.from_cache


@pytest.mark.parametrize("damage", ["flip", "cut", "sums"])
def test_a_damaged_cache_is_as_if_it_were_not_there(folder: Path, home: Path, damage: str) -> None:
    expected = logits(opened(folder / "model.gguf"))
    (weights,) = (home / "build").glob("*.weights")
    if damage == "flip":
        data = bytearray(weights.read_bytes())
        data[len(data) // 2] ^= 1
        weights.write_bytes(data)
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-64])
    else:
        weights.with_suffix(".sums").write_text("[1")
    again = opened(folder / "model.gguf")
    assert not again.filled.from_cache
    assert logits(again) == expected
    assert opened(folder / "model.gguf").filled.from_cache, "it was mended"


def test_weights_of_another_layout_are_packed_anew(
    folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def turned(panels_PB: panels.U8, rows: panels.U8, size: int) -> None:
        in_place(panels_PB, rows, size)
        panels_PB[:] = panels_PB[:, ::-1].copy()

    in_place = panels._pack_floats
    with monkeypatch.context() as older:
        older.setattr(panels, "_pack_floats", turned)
        panels.fingerprint.cache_clear()
        other = opened(folder / "model.gguf")
    panels.fingerprint.cache_clear()
    now = opened(folder / "model.gguf")
    assert not now.filled.from_cache
    assert logits(now) != logits(other)
    assert opened(folder / "model.gguf").filled.from_cache


def test_a_file_that_changed_is_packed_anew(folder: Path, home: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes((folder / "model.gguf").read_bytes())
    before = logits(opened(path))
    file = GGUFFile(path)
    data = bytearray(path.read_bytes())
    value = np.float32(file.read("output_norm.weight")[0]).tobytes()
    at = data.rindex(file.raw("output_norm.weight").tobytes())
    data[at : at + 4] = np.float32(7.0).tobytes()
    assert data[at : at + 4] != value
    path.write_bytes(data)
    after = opened(path)
    assert not after.filled.from_cache
    assert logits(after) != before


def test_a_change_in_any_file_of_a_split_is_seen(home: Path, tmp_path: Path) -> None:
    hf = write_parameters(FAMILY.weights(CONFIG), drawn_parameters(FAMILY, CONFIG), "hf")
    write_gguf(FAMILY, CONFIG, tmp_path / "model.gguf", hf, spelled(CONFIG.vocab), split=8)
    first, *_, last = sorted(tmp_path.glob("model-*-of-*.gguf"))
    before = logits(opened(first))
    tensor = gguf.GGUFReader(last).tensors[-1]
    data = bytearray(last.read_bytes())
    data[tensor.data_offset : tensor.data_offset + 4] = np.float32(7.0).tobytes()
    last.write_bytes(data)
    after = opened(first)
    assert not after.filled.from_cache
    assert logits(after) != before


def test_what_a_killed_process_left_goes_when_it_is_old(folder: Path, home: Path) -> None:
    old, new = (home / "build" / f"packing-{name}" for name in ("old", "new"))
    for left in (old, new):
        left.mkdir()
        (left / "weights").write_bytes(bytes(99))
    os.utime(old, (0, 0))
    opened(folder / "model.gguf")
    assert (old.exists(), new.exists()) == (False, True), "another process may still write the new"


def test_a_head_that_is_not_the_tied_table_is_refused(folder: Path, tmp_path: Path) -> None:
    hf = write_parameters(FAMILY.weights(CONFIG), drawn_parameters(FAMILY, CONFIG), "hf")
    table = hf["model.embed_tokens.weight"]
    for name, head in (("copy", table), ("other", table + 1)):
        tensors = {**hf, "lm_head.weight": head}
        write_hf_directory(tmp_path / name, FAMILY.to_hf(CONFIG), tensors)
    assert logits(opened(tmp_path / "copy")) == logits(opened(folder / "hf"))
    with pytest.raises(InputError, match=r"lm_head\.weight: expected a copy"):
        opened(tmp_path / "other")


def test_a_model_that_does_not_fit_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_model, "available_bytes", lambda: 1000)
    with pytest.raises(BudgetError, match="this machine has 0 MiB left"):
        opened(folder / "model.gguf")


def test_what_is_no_model_is_refused(tmp_path: Path, home: Path) -> None:
    with pytest.raises(InputError, match="expected a GGUF file, a Hugging Face directory"):
        open_source(str(tmp_path / "nothing"))
    with pytest.raises(UsageError, match="expected a home directory"):
        open_source("~no-such-user/model.gguf")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("config.json", "{}", "name the directory: {}"),
        ("model.safetensors", "x", "name the directory: {}"),
        ("README.md", "# Read me", "a model is a GGUF file, a Hugging Face directory, hf://"),
        ("empty", "", "a model is a GGUF file"),
    ],
)
def test_a_file_that_is_no_model_is_refused_with_what_to_name(
    name: str, content: str, says: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_text(content)
    assert main(["run", str(tmp_path / name), "-p", "x"]) == 4
    err = capfd.readouterr().err
    assert "got a file of another kind" in err
    assert says.format(tmp_path) in err
    assert "download" not in err


def test_a_file_of_any_name_is_opened_by_what_is_in_it(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes((folder / "model.gguf").read_bytes())
    assert open_source(str(tmp_path / "model")).kind == "gguf"


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ([], "nothing in it"),
        ([f"{i}.txt" for i in range(6)], "0.txt, 1.txt, 2.txt, 3.txt and 2 more"),
        (["a.gguf", "b.gguf"], "name the file: {}/a.gguf"),
        (["config.json"], "download its *.safetensors as well"),
        (["config.json", "pytorch_model.bin"], "save the weights of pytorch_model.bin as"),
        (["model.safetensors"], "put the config.json of the model beside model.safetensors"),
    ],
)
@pytest.mark.parametrize("verb", ["inspect", "run", "serve", "export"])
def test_a_directory_that_is_no_model_is_refused_with_what_is_in_it(
    verb: str, names: list[str], says: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    for name in names:
        (folder / name).write_text("{}")
    more = {
        "run": ["-p", "x"],
        "serve": ["--port=0"],
        "export": ["--to", "hf", "-o", str(tmp_path / "out")],
    }
    assert main([verb, str(folder), *more.get(verb, [])]) == 4
    err = capfd.readouterr().err
    assert "a Hugging Face directory (config.json and *.safetensors) or a run" in err
    assert says.format(folder) in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mode", [0o000, 0o444])
def test_a_directory_that_may_not_be_entered_is_said_to_be_unreadable(
    mode: int, tmp_path: Path
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    (closed / "config.json").write_text("{}")
    with pytest.raises(InputError, match="found a directory with"):
        open_source(str(closed))
    closed.chmod(mode)
    with _without_rights_of_root(tmp_path), pytest.raises(InputError) as caught:
        open_source("closed/")
    assert caught.value.message == "closed: cannot be read: Permission denied"


@contextmanager
def _without_rights_of_root(directory: Path) -> Iterator[None]:
    """Works in a directory as a user whom the modes of files bind."""
    with chdir(directory):
        root = os.geteuid() == 0
        if root:
            directory.chmod(0o755)
            os.seteuid(65534)
        try:
            yield
        finally:
            if root:
                os.seteuid(0)


def test_what_is_no_file_is_said_to_be_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in (str(tmp_path / "pipe"), "/dev/null"):
        with pytest.raises(InputError, match="got a pipe, a socket or a device"):
            open_source(name)


def test_caches_have_the_names_of_ggml() -> None:
    names = {kind.name.lower() for kind in gguf.GGMLQuantizationType}
    assert set(get_args(CacheKind)) <= names


def test_compare_asks_for_the_original_of_what_is_no_run(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("hf", "model.gguf"):
        assert main(["compare", str(folder / name)]) == 2
        assert "MODEL and its ORIGINAL" in capfd.readouterr().err


@pytest.mark.parametrize("verb", ["inspect", "run", "serve", "export"])
def test_more_context_than_the_model_has_is_a_fault_of_the_flag(
    verb: str, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    more = {
        "run": ["-p", "x"],
        "serve": ["--port=0"],
        "export": ["--to", "c", "-o", str(tmp_path / "out")],
    }
    path = str(folder / "model.gguf")
    assert main([verb, path, "--ctx", "99999999", *more.get(verb, [])]) == 2
    out, err = capfd.readouterr()
    assert f"--ctx: expected at most {CONFIG.context} tokens, the context of {path}, got" in err
    assert "runs here" not in out


@pytest.mark.parametrize("verb", ["inspect", "run", "serve", "export"])
def test_the_context_has_one_default(verb: str) -> None:
    command = import_module(f"lockstep.cli.{verb}").command
    (option,) = (option for option in command.params if "--ctx" in option.opts)
    assert option.help.endswith(f"[default: the model's, at most {engine_model.CONTEXT}]")


def test_untied_heads_and_tied_ones_run(tmp_path: Path) -> None:
    config = replace(CONFIG, tied=False)
    hf = write_parameters(FAMILY.weights(config), drawn_parameters(FAMILY, config), "hf")
    write_gguf(FAMILY, config, tmp_path / "untied.gguf", hf)
    assert open_source(str(tmp_path / "untied.gguf")).model.config.tied is False
    assert np.isfinite(np.frombuffer(logits(opened(tmp_path / "untied.gguf")), np.float32)).all()


@pytest.mark.parametrize("verb", ["inspect", "run"])
def test_a_type_that_nothing_reads_is_refused_by_tensor_and_type(
    verb: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tensors = write_parameters(FAMILY.weights(CONFIG), drawn_parameters(FAMILY, CONFIG), "hf")
    write_hf_directory(tmp_path / "hf", FAMILY.to_hf(CONFIG), tensors)
    name = "model.layers.1.mlp.up_proj.weight"
    wider = tensors | {name: tensors[name].astype(np.float64)}
    safetensors.numpy.save_file(wider, tmp_path / "hf" / "model.safetensors")
    assert main([verb, str(tmp_path / "hf"), *(["-p", "x"] if verb == "run" else [])]) == 4
    said = capfd.readouterr()
    assert f"{name}: F64" in said.err + said.out


def test_a_name_that_no_file_can_have_is_refused_in_short(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert main(["run", "x" * 5000, "-p", "x"]) == 4
    said = capfd.readouterr().err
    assert "cannot be read" in said
    assert len(said) < 200
