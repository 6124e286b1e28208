"""Models of the hub by name, against a hub on this machine."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hub_server
import numpy as np
import pytest
from hub_server import COMMIT, Hub
from safetensors.numpy import save
from tokenizer_files import sentencepiece_metadata, sentencepiece_model, write_gguf

from lockstep.cli.main import main
from lockstep.errors import EnvironmentLacks, InputError, UsageError
from lockstep.formats import HFDirectory
from lockstep.formats.hub import fetch
from lockstep.formats.hub_name import HubName, parse_hub_name

pytestmark = pytest.mark.usefixtures("quick_builds")

SMALL = b"GGUF, or something like it" * 1000
LARGE = np.random.default_rng(0).bytes(23 << 20)  # the library writes ten MiB at a time
WEIGHTS = save({"a": np.arange(6, dtype=np.float32).reshape(2, 3)})
NAME = "hf://org/model/m.gguf"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_server.running() as running:
        running.files = {"m.gguf": SMALL, "README.md": b"words"}
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield running


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_a_file_is_downloaded_once(hub: Hub, tmp_path: Path) -> None:
    first = fetch(NAME, tmp_path)
    assert first.read_bytes() == SMALL
    assert first == tmp_path / "org" / "model" / COMMIT / "m.gguf"
    n_asked = len(hub.asked)
    assert fetch(NAME, tmp_path) == first
    assert fetch(f"hf://org/model@{COMMIT}/m.gguf", tmp_path) == first
    assert len(hub.asked) == n_asked
    fetch(NAME, tmp_path, refresh=True)
    assert [path for _, path, _ in hub.asked[n_asked:]] == ["/api/models/org/model/revision/main"]


def test_the_token_is_for_the_hub_alone(hub: Hub, tmp_path: Path) -> None:
    fetch(NAME, tmp_path)
    assert hub.tokens.pop("/store/m.gguf") is None
    assert set(hub.tokens.values()) == {"Bearer hf_secret"}


@pytest.mark.parametrize("revision", ["v1.0", "refs/pr/3", "feature%2Fx"])
def test_a_revision_is_asked_for(hub: Hub, tmp_path: Path, revision: str) -> None:
    assert fetch(f"hf://org/model@{revision}/m.gguf", tmp_path).read_bytes() == SMALL
    assert hub.asked[0][1].endswith(f"/revision/{revision.replace('%2F', '/')}")
    assert not fetch(f"hf://org/model@{revision}/m.gguf", tmp_path).is_symlink()
    assert len(hub.ranges()) == 1


def test_a_connection_that_breaks_is_taken_up_where_it_broke(hub: Hub, tmp_path: Path) -> None:
    hub.files["m.gguf"] = LARGE
    hub.cut = [21 << 20]
    assert fetch(NAME, tmp_path).read_bytes() == LARGE
    assert hub.ranges() == ["", f"bytes={20 << 20}-"]


def test_a_run_that_ends_early_is_taken_up_by_the_next(hub: Hub, tmp_path: Path) -> None:
    hub.files["m.gguf"] = LARGE
    part = tmp_path / "org" / "model" / COMMIT / ".m.gguf.incomplete"
    part.parent.mkdir(parents=True)
    part.write_bytes(LARGE[: 5 << 20])
    hub.refuses["/store/"] = (500, "")
    with pytest.raises(EnvironmentLacks, match="HTTP status 500"):
        fetch(NAME, tmp_path)
    assert part.stat().st_size == 5 << 20
    hub.refuses.clear()
    assert fetch(NAME, tmp_path).read_bytes() == LARGE
    assert hub.ranges() == [f"bytes={5 << 20}-"] * 2
    assert not part.exists()


def test_a_process_that_is_killed_is_taken_up_by_the_next(hub: Hub, tmp_path: Path) -> None:
    hub.files["m.gguf"] = LARGE
    hub.cut = [15 << 20]
    program = (
        "import os, sys, pathlib\n"
        "from lockstep.formats.hub import fetch\n"
        "import huggingface_hub.file_download as d\n"
        "d.time.sleep = lambda _: os.kill(os.getpid(), 9)\n"  # where it waits to try again
        "fetch(sys.argv[1], pathlib.Path(sys.argv[2]))\n"
    )
    run = subprocess.run([sys.executable, "-c", program, NAME, str(tmp_path)], check=False)
    assert run.returncode == -9
    assert fetch(NAME, tmp_path).read_bytes() == LARGE
    assert hub.ranges() == ["", f"bytes={10 << 20}-"]


def test_a_disk_that_fills_up_is_said_and_what_came_is_kept(hub: Hub, tmp_path: Path) -> None:
    hub.files["m.gguf"] = LARGE
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = len(LARGE) - (1 << 20)  # within the last of the writes
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(EnvironmentLacks, match="cannot be written"):
            fetch(NAME, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert fetch(NAME, tmp_path).read_bytes() == LARGE
    assert hub.ranges()[-1] == f"bytes={limit}-"


def test_two_that_want_a_file_at_once_download_it_once(hub: Hub, tmp_path: Path) -> None:
    hub.files["m.gguf"] = LARGE
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: fetch(NAME, tmp_path).read_bytes(), range(2)))
    assert found == [LARGE, LARGE]
    assert len(hub.ranges()) == 1


@pytest.mark.parametrize("ref", ["{", "{}", '{"commit": 5}', '{"commit": "../../.."}'])
def test_a_damaged_note_of_the_cache_is_written_again(hub: Hub, tmp_path: Path, ref: str) -> None:
    path = fetch(NAME, tmp_path)
    (tmp_path / "org" / "model" / "refs" / "main").write_text(ref)
    assert fetch(NAME, tmp_path) == path
    (path.parent / ".listing.json").write_text(ref)
    (path.parent / f".{path.name}.checked").write_text(ref)
    assert fetch(NAME, tmp_path) == path
    assert len(hub.ranges()) == 1


@pytest.mark.parametrize("file", ["m.gguf", "config.json"])
def test_bytes_that_are_not_as_declared_are_refused_and_not_kept(
    hub: Hub, tmp_path: Path, file: str
) -> None:
    """Whether the hub declares a SHA-256, as for LFS, or the hash of Git."""
    hub.files["config.json"] = b'{"model_type": "llama"}'
    flipped = bytearray(hub.files[file])
    flipped[7] ^= 1
    hub.sent[file] = bytes(flipped)
    with pytest.raises(InputError, match=rf"{file}\): expected \d+ bytes with the hash"):
        fetch(f"hf://org/model/{file}", tmp_path)
    kept = {p.name for p in tmp_path.rglob("*") if p.is_file()}
    assert kept == {".listing.json", ".lock"}
    hub.sent.clear()
    assert fetch(f"hf://org/model/{file}", tmp_path).read_bytes() == hub.files[file]


@pytest.mark.parametrize("is_offline", [False, True])
def test_a_file_that_changed_in_the_cache_is_refused(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_offline: bool
) -> None:
    """Also one whose size and time of change are as before."""
    path = fetch(NAME, tmp_path)
    before = path.stat()
    with open(path, "r+b") as file:
        file.seek(100)
        file.write(b"\0")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    if is_offline:
        offline(monkeypatch)
    with pytest.raises(InputError, match="the file was removed"):
        fetch(NAME, tmp_path)
    assert not path.exists()
    if not is_offline:
        assert fetch(NAME, tmp_path).read_bytes() == SMALL


def test_a_file_that_was_only_touched_is_hashed_again_and_used(hub: Hub, tmp_path: Path) -> None:
    path = fetch(NAME, tmp_path)
    os.utime(path)
    n_asked = len(hub.asked)
    assert fetch(NAME, tmp_path) == path
    assert len(hub.asked) == n_asked


def test_offline_uses_what_is_there_and_refuses_the_rest(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fetch(NAME, tmp_path)
    n_asked = len(hub.asked)
    offline(monkeypatch)
    assert fetch(NAME, tmp_path) == path
    with pytest.raises(EnvironmentLacks, match="HF_HUB_OFFLINE") as miss:
        fetch("hf://org/model/README.md", tmp_path)
    assert miss.value.exit_code == 3
    with pytest.raises(EnvironmentLacks, match="HF_HUB_OFFLINE"):
        fetch("hf://org/model@v2/m.gguf", tmp_path)
    assert len(hub.asked) == n_asked


def test_a_cached_model_is_found_without_the_library(hub: Hub, tmp_path: Path) -> None:
    fetch(NAME, tmp_path)
    program = (
        "import sys, pathlib\n"
        "from lockstep.formats.hub import fetch\n"
        "print(fetch(sys.argv[1], pathlib.Path(sys.argv[2])))\n"
        "assert 'huggingface_hub' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program, NAME, str(tmp_path)], check=True)


def test_no_network_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(EnvironmentLacks, match="cannot be reached") as error:
        fetch(NAME, tmp_path)
    assert error.value.exit_code == 3


@pytest.mark.parametrize(
    ("begin", "status", "code", "kind", "says"),
    [
        ("/api/", 404, "RepoNotFound", InputError, "the hub has none"),
        ("/api/", 404, "RevisionNotFound", InputError, "expected the revision main"),
        ("/api/", 401, "RepoNotFound", InputError, "private"),
        ("/api/", 401, "", EnvironmentLacks, "HTTP status 401"),
        ("/api/", 403, "GatedRepo", EnvironmentLacks, "gated"),
        ("/org/", 403, "GatedRepo", EnvironmentLacks, "gated"),
        ("/org/", 404, "EntryNotFound", InputError, "404"),
        ("/api/", 503, "", EnvironmentLacks, "HTTP status 503"),
    ],
)
def test_refusals_of_the_hub_are_explained(
    hub: Hub, tmp_path: Path, begin: str, status: int, code: str, kind: type[Exception], says: str
) -> None:
    hub.refuses[begin] = (status, code)
    with pytest.raises(kind, match=says) as error:
        fetch(NAME, tmp_path)
    assert "hf_secret" not in str(error.value)


def test_a_file_that_the_repository_lacks_has_a_neighbour(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"did you mean m\.gguf"):
        fetch("hf://org/model/n.gguf", tmp_path)


def test_a_file_that_came_later_is_found(hub: Hub, tmp_path: Path) -> None:
    fetch(NAME, tmp_path)
    later = COMMIT[::-1]
    hub.listed = {"sha": later}
    hub.files["n.gguf"] = b"new"
    assert fetch("hf://org/model/n.gguf", tmp_path).parent.name == later


@pytest.mark.parametrize("part", [1, 3])
def test_all_files_of_a_split_are_downloaded(hub: Hub, tmp_path: Path, part: int) -> None:
    names = [f"Q8/m-{i:05d}-of-00003.gguf" for i in (1, 2, 3)]
    hub.files = {name: name.encode() for name in names}
    path = fetch(f"hf://org/model/{names[part - 1]}", tmp_path)
    assert [(path.parent.parent / n).read_bytes() for n in names] == list(hub.files.values())
    del hub.files[names[1]]
    with pytest.raises(InputError, match="m-00002-of-00003"):
        fetch(f"hf://org/model@other/{names[0]}", tmp_path)


def directory(hub: Hub, *, sharded: bool) -> None:
    """A model in safetensors, among files that are none of it."""
    hub.files |= {"config.json": b"{}", "tokenizer.json": b"{}", "pytorch_model.bin": b"old"}
    if sharded:
        shard = "model-00001-of-00001.safetensors"
        index = {"weight_map": {"a": shard}}
        hub.files |= {shard: WEIGHTS, "model.safetensors.index.json": json.dumps(index).encode()}
        hub.files["consolidated.safetensors"] = WEIGHTS
    else:
        hub.files["model.safetensors"] = WEIGHTS


@pytest.mark.parametrize("sharded", [False, True])
def test_a_directory_is_what_a_model_needs(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sharded: bool
) -> None:
    directory(hub, sharded=sharded)
    path = fetch("hf://org/model", tmp_path)
    assert HFDirectory(path).read("a").tolist() == [[0, 1, 2], [3, 4, 5]]
    assert (path / "tokenizer.json").exists()
    left = {"pytorch_model.bin", "consolidated.safetensors", "m.gguf", "README.md"}
    assert not left & {p.name for p in path.iterdir()}
    offline(monkeypatch)
    assert fetch("hf://org/model", tmp_path) == path
    (path / "tokenizer.json").unlink()
    with pytest.raises(EnvironmentLacks, match="no whole copy"):
        fetch("hf://org/model", tmp_path)


def test_a_repository_of_gguf_files_lists_them(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"it has m\.gguf"):
        fetch("hf://org/model", tmp_path)


@pytest.mark.parametrize("shard", ["../../../x.safetensors", "/tmp/x.safetensors", ".listing.json"])
def test_a_shard_that_leads_out_of_the_cache_is_refused(
    hub: Hub, tmp_path: Path, shard: str
) -> None:
    directory(hub, sharded=True)
    index = {"weight_map": {"a": shard}}
    hub.files["model.safetensors.index.json"] = json.dumps(index).encode()
    hub.files[shard] = WEIGHTS
    with pytest.raises(InputError, match="inside of the repository"):
        fetch("hf://org/model", tmp_path / "cache")
    assert [p.name for p in tmp_path.iterdir()] == ["cache"]


def test_a_commit_that_leads_out_of_the_cache_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.listed = {"sha": "../../../../elsewhere"}
    with pytest.raises(InputError, match="expected commits"):
        fetch(NAME, tmp_path / "cache")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text",
    [
        *("hf://", "hf://org", "hf://org/", "hf:/org/model/m.gguf", "hf://org/model@/m.gguf"),
        *("hf://org/model/../x.gguf", "hf://org/model//x.gguf", "hf://org/model/a/../../x.gguf"),
        *("hf://org/model/..", "hf://org/..", "hf://../model", "hf://org/model/x\\..\\y.gguf"),
        *("hf://org/model@../x.gguf", "hf://org/model@a%2F..%2Fb/x.gguf", "hf://org/model/\0"),
        *("hf://org/model/a/", "hf://datasets/org/model/x", "hf://org/model/C:/x", "hf://o g/m"),
        *("hf://org/model/.checked", "hf://org/model@%2e%2e/x.gguf", "hf://org/m\n/x.gguf"),
    ],
)
def test_malformed_names_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError) as error:
        fetch(text, tmp_path)
    assert error.value.exit_code == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text",
    [
        *("hf://org/model", "hf://org/model@v1", "hf://org/model/a/b.gguf", "hf://models/o/m/x"),
        *("hf://Org-1/m_0.5B@refs/pr/3/x.gguf", "hf://o/m@feature%2Fx/y.gguf"),
    ],
)
def test_names_are_read_as_the_library_reads_them(text: str) -> None:
    from huggingface_hub.utils import parse_hf_uri

    theirs = parse_hf_uri(text)
    expected = HubName(theirs.id, theirs.revision or "main", theirs.path_in_repo)
    assert parse_hub_name(text) == expected
    assert parse_hub_name(expected.text) == expected


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOCKSTEP_HOME", str(tmp_path / "home"))
    return tmp_path


def test_a_model_of_the_hub_runs_from_the_terminal(
    hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    metadata = sentencepiece_metadata(sentencepiece_model(gemma=False), gemma=False)
    local = write_gguf(home / "local.gguf", metadata)
    hub.files["m.gguf"] = local.read_bytes()
    found = []
    for name in (str(local), NAME, NAME):
        assert main(["run", name, "-p", "hello world", "-n", "8", "--ctx=32", "--json"]) == 0
        found.append(json.loads(capfd.readouterr().out)["tokens"])
        if name == NAME:
            offline(monkeypatch)
    assert found[0] == found[1] == found[2]
    assert len(found[0]) > 0
    assert len(hub.ranges()) == 1


@pytest.mark.parametrize("verb", ["run", "inspect", "export"])
@pytest.mark.parametrize(
    ("name", "refuses", "code", "says"),
    [
        ("hf://org/model/m.gguf", (404, "RepoNotFound"), 4, "the hub has none"),
        ("hf://org/model/n.gguf", None, 4, "did you mean m.gguf"),
        ("hf://org/model/m.gguf", (401, ""), 3, "401"),
        ("hf://org/model/m.gguf", "offline", 3, "as HF_HUB_OFFLINE is set"),
        ("hf://org", None, 2, "hf://"),
        ("hf://org/model/m.gguf", "not a model", 4, "first bytes"),
    ],
)
def test_what_the_hub_refuses_is_a_sentence_at_the_terminal(
    hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    verb: str, name: str, refuses: Any, code: int, says: str,
) -> None:  # fmt: skip
    if isinstance(refuses, tuple):
        hub.refuses["/api/"] = refuses
    elif refuses == "offline":
        offline(monkeypatch)
    elif refuses == "not a model":
        hub.files["m.gguf"] = b"words" * 99
    more = {"run": ["-p", "x"], "export": ["--to", "hf", "-o", str(home / "out")]}
    assert main([verb, name, *more.get(verb, [])]) == code
    out, err = capfd.readouterr()
    assert not out
    assert says in err
    assert "hint:" in err
    assert "Traceback" not in err
    assert "hf_secret" not in err
    assert not (home / "out").exists()
