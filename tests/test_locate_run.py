"""Our own run checkpoints as leaves: what the trainer saved, and every damage by its name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stored_leaf import leaf_bytes

from lockstep.artifacts.checkpoint_state import CheckpointState, DataCursor, RandomState
from lockstep.engine.bump import write_bump
from lockstep.engine.checkpoint import save_checkpoint
from lockstep.errors import InputError
from lockstep.formats.leaf import Key
from lockstep.formats.locate.run_checkpoint import locate

SHAPES = {"embed.table": (7, 3), "layers.0.gain": (3,), "layers.10.ffn.up": (3, 5)}


def tensors(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    found = {id: rng.normal(size=shape).astype(np.float32) for id, shape in SHAPES.items()}
    found["layers.0.gain"][:2] = np.array([0x80000000, 0x7FC01234], np.uint32).view(np.float32)
    return found


def moments(seed: int) -> dict[str, np.ndarray]:
    return {f"{id}@{slot}": a for slot in "mv" for id, a in tensors(seed + 1).items()}


def state(step: int) -> CheckpointState:
    return CheckpointState(
        created_at="2026-01-01T00:00:00+00:00",
        reason="interval",
        step=step,
        tokens_seen=step * 64,
        template="qwen3",
        config={"num_layers": 2, "rope_theta": 1e4},
        tokenizer_sha256=None,
        dataset_sha256="cd" * 32,
        optimizer={"name": "adamw", "beta1": 0.9, "fused": False},
        schedule={"decay": "cosine"},
        settings={},
        cursor=DataCursor(epoch=1, index=step),
        random=RandomState(generator="philox", seed=42),
        files={},
    )


def save(run: Path, *steps: int) -> Path:
    for step in steps:
        save_checkpoint(run / "checkpoints", state(step), tensors(step), moments(step))
    return run


def test_everything_that_was_saved_is_a_leaf(tmp_path: Path) -> None:
    run = save(tmp_path / "run", 3)
    store = locate(run)
    arrays = {name: leaf_bytes(leaf) for name, leaf in store.leaves.items() if not leaf.value}
    wanted = {f"parameters/{id}": a.tobytes() for id, a in tensors(3).items()}
    for id, array in moments(3).items():
        parameter, _, slot = id.rpartition("@")
        wanted[f"moments/{slot}/{parameter}"] = array.tobytes()
    assert arrays == wanted
    values = {n: (leaf.element.name, *leaf.value) for n, leaf in store.leaves.items() if leaf.value}
    assert values == {
        "state/step": ("int", 3),
        "state/tokens_seen": ("int", 192),
        "state/optimizer/name": ("str", "adamw"),
        "state/optimizer/beta1": ("float", 0.9),
        "state/optimizer/fused": ("bool", False),
        "state/schedule/decay": ("str", "cosine"),
        "state/settings": ("dict", {}),
        "state/cursor/epoch": ("int", 1),
        "state/cursor/index": ("int", 3),
        "state/random/generator": ("str", "philox"),
        "state/random/seed": ("int", 42),
    }
    up = store.leaves["moments/m/layers.10.ffn.up"]
    assert up.path == (Key("moments"), Key("m"), Key("layers.10.ffn.up"))
    assert up.physical == "layers.10.ffn.up@m"


def test_what_the_run_is_and_its_hashes_are_facts(tmp_path: Path) -> None:
    store = locate(save(tmp_path / "run", 3))
    assert store.facts["config"] == {"num_layers": 2, "rope_theta": 1e4}
    assert store.facts["template"] == "qwen3"
    hashes = store.facts["files"]
    assert isinstance(hashes, dict)
    for identity in store.files:
        if identity.path.name != "state.json":
            digest = hashlib.sha256(identity.path.read_bytes()).hexdigest()
            assert hashes[identity.path.name] == {"sha256": digest, "n_bytes": identity.n_bytes}
    assert any("SHA-256" in note for note in store.notes)


def test_the_current_checkpoint_is_meant_unless_one_is_named(tmp_path: Path) -> None:
    run = save(tmp_path / "run", 3, 12)
    assert locate(run).leaves["state/step"].value == (12,)
    assert locate(run / "checkpoints").leaves["state/step"].value == (12,)
    assert locate(run / "checkpoints" / "step_00000003").leaves["state/step"].value == (3,)
    (run / "checkpoints" / "current").unlink()
    with pytest.raises(InputError, match="got 2: step_00000003, step_00000012") as refused:
        locate(run)
    assert refused.value.hint.endswith("step_00000012")
    (run / "checkpoints" / "current").symlink_to(tmp_path)
    with pytest.raises(InputError, match="expected a link to a checkpoint beside it"):
        locate(run)
    with pytest.raises(InputError, match="expected a checkpoint, got 0"):
        locate(tmp_path)


def test_promoted_weights_alone_are_leaves(tmp_path: Path) -> None:
    write_bump(
        tmp_path, tensors(1), template="qwen3", config={}, tokenizer_sha256=None,
        generated_at="", step=1, reason="promoted", run_id=None, checkpoint=None,
    )  # fmt: skip
    leaves = locate(tmp_path).leaves
    assert {n: leaf_bytes(leaf) for n, leaf in leaves.items()} == {
        f"parameters/{id}": a.tobytes() for id, a in tensors(1).items()
    }


def edit(path: Path, change: Callable[[dict[str, Any]], None], *, seal: bool = False) -> None:
    document = json.loads(path.read_text())
    change(document)
    if seal:
        text = json.dumps({**document, "digest": ""}, sort_keys=True, separators=(",", ":"))
        document["digest"] = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "seal", "message"),
    [
        (lambda d: d.update(step=4), False, "expected digest"),
        (lambda d: d["optimizer"].update(beta1=0.8), False, "expected digest"),
        (lambda d: d.update(schema="other/1"), True, "expected schema"),
        (lambda d: d["files"].pop("weights.bump"), True, "expected the hashes of its files"),
        (lambda d: d["files"]["weights.bump"].update(n_bytes=1), True, "expected the 1 bytes"),
        (lambda d: d["files"].update({"../x": {"n_bytes": 1}}), True, "without folders"),
    ],
)
def test_a_changed_state_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], seal: bool, message: str
) -> None:
    folder = save(tmp_path / "run", 3) / "checkpoints" / "step_00000003"
    edit(folder / "state.json", change, seal=seal)
    with pytest.raises(InputError, match=message):
        locate(folder)


@pytest.mark.parametrize("name", ["weights.bump", "moments.safetensors", "weights_manifest.json"])
@pytest.mark.parametrize("n_cut", [1, 100])
def test_a_file_that_is_cut_or_missing_is_refused(tmp_path: Path, name: str, n_cut: int) -> None:
    folder = save(tmp_path / "run", 3) / "checkpoints" / "step_00000003"
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:-n_cut])
    with pytest.raises(InputError, match=name):
        locate(folder)
    (folder / name).unlink()
    with pytest.raises(InputError, match=name):
        locate(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda e: e[0].update(name="layers.0.gain"),
        lambda e: e[0].update(shape=[3, 7]),
        lambda e: e[0].update(offset=e[1]["offset"]),
        lambda e: e[0].update(offset=-4),
        lambda e: e[0].update(shape=None),
        lambda e: e.pop(),
    ],
)
def test_a_manifest_that_the_weights_do_not_know_is_refused(
    tmp_path: Path, change: Callable[[list[dict[str, Any]]], None]
) -> None:
    write_bump(
        tmp_path, tensors(1), template="qwen3", config={}, tokenizer_sha256=None,
        generated_at="", step=1, reason="promoted", run_id=None, checkpoint=None,
    )  # fmt: skip
    edit(tmp_path / "weights_manifest.json", lambda d: change(d["entries"]))
    with pytest.raises(InputError, match="expected the tensors of its manifest"):
        locate(tmp_path)


def test_every_bit_of_a_value_is_read(tmp_path: Path) -> None:
    folder = save(tmp_path / "run", 3) / "checkpoints" / "step_00000003"
    before = {n: leaf_bytes(leaf) for n, leaf in locate(folder).leaves.items()}
    for name, leaf in ((n, leaf) for n, leaf in locate(folder).leaves.items() if not leaf.value):
        file = leaf.storage.file  # type: ignore[union-attr]
        raw = bytearray(file.read_bytes())
        raw[leaf.storage.offset + 5] ^= 0x10  # type: ignore[union-attr]
        original = file.read_bytes()
        file.write_bytes(raw)
        after = {n: leaf_bytes(leaf) for n, leaf in locate(folder).leaves.items()}
        file.write_bytes(original)
        assert {n for n in before if before[n] != after[n]} == {name}
