"""Checkpoints and weight files: whole or not at all, hashed, refused when damaged or foreign."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from lockstep.artifacts.checkpoint_state import CheckpointState, DataCursor, RandomState
from lockstep.artifacts.weights_manifest import WeightsManifest
from lockstep.engine.bump import BUMP_FILE, read_bump
from lockstep.engine.checkpoint import (
    CURRENT,
    MOMENTS_FILE,
    list_checkpoints,
    load_checkpoint,
    newest_valid,
    save_checkpoint,
)
from lockstep.engine.durable import new_directory
from lockstep.errors import EnvironmentLacks, InputError

SHAPES = {"embed.weight": (11, 6), "norm.weight": (6,), "head.weight": (11, 6)}


def _tensors(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {id: rng.normal(size=shape).astype(np.float32) for id, shape in SHAPES.items()}


def _moments(seed: int) -> dict[str, np.ndarray]:
    return {f"{id}@{kind}": a for kind in "mv" for id, a in _tensors(seed).items()}


def _state(step: int) -> CheckpointState:
    return CheckpointState(
        created_at="2026-01-01T00:00:00+00:00",
        reason="interval",
        step=step,
        tokens_seen=step * 64,
        template="qwen3",
        config={"num_layers": 2, "vocab_size": 11, "embed_dim": 6, "rope_theta": 1e4},
        tokenizer_sha256="ab" * 32,
        dataset_sha256="cd" * 32,
        optimizer={"name": "adamw"},
        schedule={"decay": "cosine"},
        settings={"seq_len": 16},
        cursor=DataCursor(epoch=1, index=step),
        random=RandomState(generator="philox", seed=42),
        files={},
    )


def _save(root: Path, step: int, keep_last: int = 0) -> Path:
    return save_checkpoint(root, _state(step), _tensors(step), _moments(step), keep_last=keep_last)


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    path = _save(tmp_path, 3)
    found = load_checkpoint(path, SHAPES)
    assert found.state.step == 3
    assert found.state.cursor == DataCursor(epoch=1, index=3)
    assert set(found.state.files) == {BUMP_FILE, WeightsManifest.file, MOMENTS_FILE}
    for id, expected in _tensors(3).items():
        assert found.parameters[id].tobytes() == expected.tobytes()
    for id, expected in _moments(3).items():
        assert found.moments[id].tobytes() == expected.tobytes()
    assert tmp_path / os.readlink(tmp_path / CURRENT) == path


def test_the_last_ones_are_kept_and_leftovers_go(tmp_path: Path) -> None:
    (tmp_path / ".step_00000009.1.tmp").mkdir(parents=True)
    (tmp_path / f".{CURRENT}.1.link").symlink_to("step_00000009")
    for step in (1, 2, 10):
        _save(tmp_path, step, keep_last=2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step_00000002", "step_00000010"]
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _drop(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [_truncate, _flip, _drop])
@pytest.mark.parametrize("file", [BUMP_FILE, WeightsManifest.file, MOMENTS_FILE, "state.json"])
def test_damage_is_named_and_the_one_before_is_used(
    tmp_path: Path, file: str, damage: Callable[[Path], None]
) -> None:
    _save(tmp_path, 1)
    path = _save(tmp_path, 2)
    damage(path / file)
    with pytest.raises(InputError, match=file.replace(".", r"\.")):
        load_checkpoint(path, SHAPES)
    found, skipped = newest_valid(tmp_path, SHAPES)
    assert found is not None
    assert found.state.step == 1
    assert [s.path for s in skipped] == [path]
    assert file in skipped[0].why


def test_a_changed_state_is_refused(tmp_path: Path) -> None:
    path = _save(tmp_path, 2)
    document = json.loads((path / "state.json").read_text())
    document["cursor"]["index"] = 7
    (path / "state.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match="digest"):
        load_checkpoint(path, SHAPES)


def test_none_valid_is_an_error_and_none_at_all_is_none(tmp_path: Path) -> None:
    assert newest_valid(tmp_path, SHAPES) == (None, ())
    _flip(_save(tmp_path, 1) / MOMENTS_FILE)
    with pytest.raises(InputError, match="1 that cannot"):
        newest_valid(tmp_path, SHAPES)


def test_looking_for_a_checkpoint_leaves_one_that_is_being_saved(tmp_path: Path) -> None:
    _save(tmp_path, 1)
    with new_directory(tmp_path / "step_00000002") as directory:
        (directory / "state.json").write_text("not yet whole")
        found, _ = newest_valid(tmp_path, SHAPES)
        assert found is not None
        assert (directory / "state.json").exists()


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    path = _save(tmp_path, 1)
    with pytest.raises(InputError, match=r"head\.weight"):
        load_checkpoint(path, {**SHAPES, "head.weight": (12, 6)})
    with pytest.raises(InputError, match=r"extra\.weight"):
        load_checkpoint(path, {**SHAPES, "extra.weight": (1, 1)})


def test_a_checkpoint_under_another_step_is_refused(tmp_path: Path) -> None:
    path = _save(tmp_path, 1)
    path.rename(tmp_path / "step_00000005")
    with pytest.raises(InputError, match="got step 1"):
        load_checkpoint(tmp_path / "step_00000005", SHAPES)


def test_the_layout_of_the_weights_file(tmp_path: Path) -> None:
    path = _save(tmp_path, 1)
    data = (path / BUMP_FILE).read_bytes()
    manifest, tensors = read_bump(path, SHAPES)
    assert data[:8] == b"BUMPWGT5"
    assert struct.unpack_from("<2I", data, 8) == (5, 1)
    assert struct.unpack_from("<3I", data, 16) == (2, 11, 6), "layers, vocabulary, width"
    assert data[152:156] == struct.pack("<I", 3)
    magic, n_meta, digest = struct.unpack("<8sQ32s", data[-48:])
    meta = data[-48 - n_meta : -48]
    assert magic == b"BUMPV5MD"
    assert hashlib.sha256(meta).digest() == digest
    assert json.loads(meta)["template"] == {"name": "qwen3"}
    assert hashlib.sha256(data[152 : -48 - n_meta]).digest() == data[88:120]
    for entry in manifest.entries:
        assert entry.offset % 64 == 0
        assert data[entry.offset :][: entry.size] == tensors[entry.name].tobytes()


def test_weights_of_another_file_are_refused(tmp_path: Path) -> None:
    first, second = _save(tmp_path, 1), _save(tmp_path, 2)
    shutil.copy(first / BUMP_FILE, second / BUMP_FILE)
    with pytest.raises(InputError, match="manifest"):
        read_bump(second, SHAPES)


@contextmanager
def _largest_file(n_bytes: int) -> Iterator[None]:
    """No file grows beyond this: stands for a full disk and needs no privilege."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    kept = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, kept)


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    path = _save(tmp_path, 1)
    before = {p.name: p.read_bytes() for p in path.iterdir()}
    with _largest_file(500), pytest.raises(EnvironmentLacks, match=r"weights\.bump") as caught:
        _save(tmp_path, 2)
    assert caught.value.hint
    assert sorted(p.name for p in tmp_path.iterdir()) == ["current", "step_00000001"]
    assert {p.name: p.read_bytes() for p in path.iterdir()} == before
    assert newest_valid(tmp_path, SHAPES)[0] is not None


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where a directory is needed")
    with pytest.raises(EnvironmentLacks, match="checkpoints"):
        _save(tmp_path / "checkpoints", 1)


def test_an_error_inside_leaves_the_old_directory(tmp_path: Path) -> None:
    final = tmp_path / "made"
    with new_directory(final) as directory:
        (directory / "file").write_text("old")

    def fail() -> None:
        with new_directory(final) as directory:
            (directory / "file").write_text("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (final / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [final]
    with new_directory(final) as directory:
        (directory / "file").write_text("new")
    assert (final / "file").read_text() == "new"
    assert list(tmp_path.iterdir()) == [final]


def test_numbers_that_are_not_finite_are_saved_as_they_are(tmp_path: Path) -> None:
    parameters = _tensors(1)
    parameters["norm.weight"][0] = np.nan
    path = save_checkpoint(tmp_path, _state(1), parameters, _moments(1))
    found = load_checkpoint(path, SHAPES).parameters["norm.weight"]
    assert found.tobytes() == parameters["norm.weight"].tobytes()
