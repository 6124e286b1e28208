"""`lockstep verify` against what was made to harm: refused, nothing executed, no file half written.

Damage of each format alone is in test_locate_hostile*.py; here the whole command meets it.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile_runs import HEAD, Said, bounds, pair, refused
from safetensors.numpy import save, save_file
from verify_pair import Pair, make_pair

from lockstep.cli import verify_prove
from lockstep.cli.main import main
from lockstep.cli.verify_progress import Progress
from lockstep.errors import InputError
from lockstep.verify.api import check

__all__ = ["bounds", "pair"]  # fixtures
PLAIN = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}


# --- checkpoints


class Runs:
    """Pickles to a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


def with_header(entries: Any, n_data: int = 4) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + bytes(n_data)


def index_of(places: dict[str, str]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        root = folder / "shards"
        root.mkdir()
        save_file({"a": np.zeros(4, np.float32)}, root / "1.safetensors")
        save_file({"b": np.zeros(4, np.float32)}, folder / "outside.safetensors")
        (root / "loop.safetensors").symlink_to("loop.safetensors")
        os.mkfifo(root / "pipe.safetensors")
        (root / "zero.safetensors").symlink_to("/dev/zero")
        index = {"weight_map": {"a": "1.safetensors", **places}}
        (root / "model.safetensors.index.json").write_text(json.dumps(index))
        return root

    return make


def bytes_of(data: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "hostile").write_bytes(data)
        return folder / "hostile"

    return make


def archive_of(**members: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "hostile", "w") as file:
            for name, data in members.items():
                file.writestr(name.replace("__", "/").replace("_pkl", ".pkl"), data)
        return folder / "hostile"

    return make


def code_in_a_pickle(folder: Path) -> Path:
    code = pickle.dumps({"w": Runs(os.system, f"touch {folder}/canary")}, 2)
    return archive_of(archive__data_pkl=code, archive__version=b"3\n")(folder)


def code_in_dcp(folder: Path) -> Path:
    root = folder / "dcp"
    root.mkdir()
    (root / "__0_0.distcp").write_bytes(b"")
    (root / ".metadata").write_bytes(pickle.dumps(Runs(eval, f"open('{folder}/canary', 'w')"), 4))
    return root


def objects_in_npy(folder: Path) -> Path:
    with (folder / "hostile").open("wb") as file:
        np.save(file, np.array([Runs(os.system, f"touch {folder}/canary")], object))
    return folder / "hostile"


def loop_of_links(folder: Path) -> Path:
    (folder / "ring").symlink_to("gnir")
    (folder / "gnir").symlink_to("ring")
    return folder / "ring"


def ring_of_folders(folder: Path) -> Path:
    root = folder / "ring"
    (root / "below").mkdir(parents=True)
    (root / "below" / "up").symlink_to("..")
    (root / ".zgroup").write_text('{"zarr_format": 2}')
    return root


def ring_in_zarr(folder: Path) -> Path:
    root = ring_of_folders(folder)
    (root / "below" / "up").unlink()
    (root / "below" / "self").symlink_to("self")
    return root


def run_in_a_ring(folder: Path) -> Path:
    root = folder / "run"
    (root / "checkpoints" / "step_00000001").mkdir(parents=True)
    (root / "checkpoints" / "step_00000001" / "weights.bump").write_bytes(b"BUMPWGT5")
    (root / "checkpoints" / "step_00000001" / "state.json").write_text("{}")
    (root / "checkpoints" / "current").symlink_to("current")
    return root


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "hostile")
    return folder / "hostile"


def cut(folder: Path) -> Path:
    data = save({"w": np.arange(9, dtype=np.float32)})
    return bytes_of(data[:-1])(folder)


CHECKPOINTS: dict[str, Callable[[Path], Path]] = {
    "code in a pickle": code_in_a_pickle,
    "code in DCP": code_in_dcp,
    "objects in npy": objects_in_npy,
    "shard outside": index_of({"b": "../outside.safetensors"}),
    "absolute shard": index_of({"b": "/etc/passwd"}),
    "shard that is a ring": index_of({"b": "loop.safetensors"}),
    "shard that is a pipe": index_of({"b": "pipe.safetensors"}),
    "shard that is a device": index_of({"b": "zero.safetensors"}),
    "shard without the tensor": index_of({"b": "1.safetensors"}),
    "header bomb": bytes_of(struct.pack("<Q", 1 << 62) + b"{}"),
    "nested header": bytes_of(with_header(b'{"x":' + b"[" * 50_000)),
    "overlap": bytes_of(with_header({"x": PLAIN, "y": PLAIN})),
    "shape without end": bytes_of(with_header({"x": {**PLAIN, "shape": [1 << 40, 1 << 40]}})),
    "key twice": bytes_of(with_header(b'{"x":%b,"x":%b}' % ((json.dumps(PLAIN).encode(),) * 2))),
    "half a sign": bytes_of(with_header(b'{"\\ud800":' + json.dumps(PLAIN).encode() + b"}")),
    "cut": cut,
    "empty": bytes_of(b""),
    "zeros": bytes_of(bytes(4096)),
    "ring of links": loop_of_links,
    "ring of folders": ring_of_folders,
    "ring of links in zarr": ring_in_zarr,
    "run in a ring": run_in_a_ring,
    "pipe": pipe,
    "device": lambda _: Path("/dev/zero"),
    "folder": lambda folder: folder,
    "none": lambda folder: folder / "not there",
}


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("side", ["source", "target"])
def test_a_hostile_checkpoint_is_refused(tmp_path: Path, capfd: Said, name: str, side: str) -> None:
    (tmp_path / "good").mkdir()
    (tmp_path / "bad").mkdir()
    pair = make_pair(tmp_path / "good")
    hostile = CHECKPOINTS[name](tmp_path / "bad")
    sides = [hostile, pair.target] if side == "source" else [pair.source, hostile]
    refused(["verify", *map(str, sides), "--claims", str(pair.claims)], capfd)
    assert not list(tmp_path.rglob("canary"))


def test_the_canary_sings_where_pickles_are_run(tmp_path: Path) -> None:
    with zipfile.ZipFile(code_in_a_pickle(tmp_path)) as file:
        pickle.loads(file.read("archive/data.pkl"))
    assert (tmp_path / "canary").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_refused(pair: Pair, capfd: Said) -> None:
    pair.target.chmod(0)
    assert "ermission" in refused(pair.words, capfd)


# --- files that change during the run


def rewrite(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def replace_it(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.replace(path)


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


CHANGES: dict[str, Callable[[Path], None]] = {
    "rewritten": rewrite,
    "replaced": replace_it,
    "appended": append,
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("side", ["source", "target"])
def test_a_file_that_changes_during_the_run_is_refused(
    pair: Pair, capfd: Said, monkeypatch: pytest.MonkeyPatch, change: str, side: str
) -> None:
    path: Path = getattr(pair, side)
    original, times = path.read_bytes(), path.stat()

    calls = iter([CHANGES[change]])

    class Meddling(Progress):
        """Changes the file with the first word of progress."""

        def __call__(self, n_done: int, n_total: int) -> None:
            for meddle in calls:
                meddle(path)
            super().__call__(n_done, n_total)

    def again() -> None:
        path.write_bytes(original)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    monkeypatch.setattr(verify_prove, "Progress", Meddling)
    code = main(pair.words)
    said = capfd.readouterr()
    assert code == 4, said
    assert "VERDICT" not in said.out
    again()
    monkeypatch.undo()
    assert main(pair.words) == 0


def test_a_thread_that_writes_meanwhile_is_found(tmp_path: Path) -> None:
    arrays = {f"w{i}": np.full((256, 1024), i, np.float32) for i in range(6)}
    for name in "ab":
        save_file(arrays, tmp_path / name)
    done = threading.Event()

    def write() -> None:
        with (tmp_path / "b").open("r+b") as file:
            file.seek(-4, os.SEEK_END)
            while not done.is_set():
                file.write(b"\1")
                file.flush()
                file.seek(-4, os.SEEK_END)

    claims = tmp_path / "claims.toml"
    claims.write_text(HEAD + '[[claim]]\ngroup = "g"\ntarget = "{x:str}"\nsource = "{x}"\n')
    thread = threading.Thread(target=write)
    thread.start()
    try:
        with pytest.raises(InputError, match="changed since"):
            check(tmp_path / "a", tmp_path / "b", claims)
    finally:
        done.set()
        thread.join()
