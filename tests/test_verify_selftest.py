"""The self-test: each mutation applies somewhere and is caught; a blind verifier is found out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from verify_pair import make_pair
from verify_stores import store_of

from lockstep.artifacts.selftest import Selftest
from lockstep.cli.main import main
from lockstep.errors import GateError, InputError, UsageError
from lockstep.formats.leaf import FileIdentity, Leaf
from lockstep.formats.open_store import open_store
from lockstep.verify import check
from lockstep.verify.api import Pair
from lockstep.verify.mutation import mutant
from lockstep.verify.mutation import selftest as module
from lockstep.verify.mutation.mutant import Mutation
from lockstep.verify.mutation.overlay import overlaid
from lockstep.verify.mutation.selftest import MUTATIONS, selftest
from lockstep.verify.mutation.selftest_picks import Trial
from lockstep.verify.numbers.differences import Tally

N_LAYERS = 11  # so that 10 comes before 2 in the order of texts
CLAIMS = """
schema = "lockstep.claims/1"

[facts]
n_heads = 4
n_kv_heads = 2

[[claim]]
target = "l.{layer:int}.q"
source = "layers.{layer}.q"
transform = ["rope_half_to_interleaved(n_heads)"]

[[claim]]
target = "l.{layer:int}.o"
source = "layers.{layer}.o"

[[claim]]
target = "l.{layer:int}.gate_up"
sources = ["layers.{layer}.gate", "layers.{layer}.up"]
transform = ["concat(0)"]

[[claim]]
target = "norms"
source = "layers.{layer:int}.norm"
transform = ["stack(0)"]

[[claim]]
target = "embed"
source = "tokens"
transform = ["pad(0, 0, 3, 0.0)"]

[[claim]]
target = "cube"
source = "cube"

[[claim]]
group = "mu"
target = "mu.{layer:int}.o"
source = "adam.{layer}.o"

[[claim]]
group = "step"
target = "step"
source = "step"

[[claim]]
target = "head"
source = "head"

[[tie]]
side = "target"
leaves = ["head", "head_again"]
"""
ODD = ("float64", "float16", "bfloat16", "float32", "large")  # each has a rule of its own
for _name in ODD:
    CLAIMS += f'[[claim]]\ntarget = "odd.{_name}"\nsource = "odd.{_name}"\n'


def tensors() -> dict[str, Any]:
    """Tensors of which every mutation finds one that it applies to."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    found: dict[str, Any] = {
        "tokens": normal(13, 16),
        "cube": normal(5, 5, 3),
        "head": normal(9, 4),
    }
    for i in range(N_LAYERS):
        found |= {f"layers.{i}.{part}": normal(16, 16) for part in ("q", "o", "gate", "up")}
        found |= {f"layers.{i}.norm": normal(6), f"adam.{i}.o": normal(16, 16)}
    for dtype in (np.float64, np.float16, ml_dtypes.bfloat16, np.float32):
        word = np.dtype(f"u{np.dtype(dtype).itemsize}")
        odd = rng.standard_normal((7, 9)).astype(dtype)
        # a zero, a NaN with a payload, a subnormal number, one too large for a narrower type
        odd[0, :4] = 0.0, np.nan, 0.0, 3e4
        odd.view(word)[0, 1] |= 5
        odd.view(word)[0, 2] = 3
        found[f"odd.{np.dtype(dtype).name}"] = odd
    large = normal(300, 256)  # more than one chunk of an overlay
    return found | {"odd.large": large, "step": np.array([175_000], np.int64)}


def converted(source: dict[str, Any]) -> dict[str, Any]:
    """What the claims say."""
    found = {name: source[name] for name in source if name in ("cube", "step", "head")}
    found |= {name: a for name, a in source.items() if name.startswith("odd.")}
    found["head_again"] = source["head"]
    found["embed"] = np.pad(source["tokens"], ((0, 3), (0, 0)))
    found["norms"] = np.stack([source[f"layers.{i}.norm"] for i in range(N_LAYERS)])
    for i in range(N_LAYERS):
        parts = {part: source[f"layers.{i}.{part}"] for part in ("q", "o", "gate", "up")}
        q = parts["q"].reshape(4, 2, 2, 16).swapaxes(1, 2).reshape(16, 16)
        found[f"l.{i}.q"], found[f"l.{i}.o"] = np.ascontiguousarray(q), parts["o"]
        found[f"l.{i}.gate_up"] = np.concatenate([parts["gate"], parts["up"]])
        found[f"mu.{i}.o"] = source[f"adam.{i}.o"]
    return found


def made(folder: Path, source: dict[str, Any]) -> tuple[Pair, Path]:
    """The checkpoints and the claims."""
    claims = folder / "claims.toml"
    claims.write_text(CLAIMS)
    save_file(source, folder / "old.safetensors")
    save_file(converted(source), folder / "new.safetensors")
    pair = Pair(source=folder / "old.safetensors", target=folder / "new.safetensors")
    return pair, claims


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Selftest:
    pair, claims = made(tmp_path_factory.mktemp("rich"), tensors())
    before = [FileIdentity.of(path) for path in (pair.source, pair.target)]
    record = selftest(pair, claims, Trial(per_rule=1))
    assert [FileIdentity.of(path) for path in (pair.source, pair.target)] == before
    return record


def outcomes(record: Selftest) -> dict[str, set[str]]:
    """What came of each mutation."""
    found: dict[str, set[str]] = {}
    for row in record.rows:
        found.setdefault(row.mutation, set()).add(row.outcome)
    return found


def test_every_mutation_applies_somewhere_and_is_caught(tried: Selftest) -> None:
    found = outcomes(tried)
    for mutation in MUTATIONS:
        wanted = "passed" if mutation.harmless else "caught"
        assert wanted in found[mutation.name], mutation.name
    assert tried.passed
    assert not {"missed", "false alarm"} & set().union(*found.values())
    assert found["tie broken"] == {"caught"}


def test_what_is_caught_is_named(tried: Selftest) -> None:
    unnamed = [(row.mutation, row.place, row.words) for row in tried.rows if row.named == "no"]
    assert not unnamed
    assert sum(row.named == "yes" for row in tried.rows) > 150


def test_rows_say_by_what_they_were_caught(tried: Selftest) -> None:
    assert {row.by for row in tried.rows if row.outcome == "caught"} == {
        "bits", "coverage", "type", "file", "usage",
    }  # fmt: skip
    assert all(row.words for row in tried.rows if row.outcome == "caught")
    assert all(row.why for row in tried.rows if row.outcome == "not applicable")


def test_the_record_comes_back_and_its_verdict_follows_from_its_rows(
    tried: Selftest, tmp_path: Path
) -> None:
    tried.save(tmp_path)
    assert Selftest.load(tmp_path) == tried
    missed = replace(tried.rows[0], outcome="missed", by="")
    with pytest.raises(InputError, match="follow from the rows"):
        replace(tried, rows=(missed, *tried.rows[1:]))


def small(folder: Path) -> tuple[Pair, Path]:
    pair = make_pair(folder)
    return Pair(source=pair.source, target=pair.target), pair.claims


def test_a_verifier_that_compares_numbers_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Tally.add

    def only_far_apart(self: Tally, expected: Any, found: Any, where: Any) -> None:
        a, b = (np.ascontiguousarray(words).view("<f4") for words in (expected, found))
        if expected.itemsize != 4 or not np.allclose(a, b):
            add(self, expected, found, where)

    monkeypatch.setattr(Tally, "add", only_far_apart)
    record = selftest(*small(tmp_path), Trial(per_rule=1))
    assert not record.passed
    missed = {row.mutation for row in record.rows if row.outcome == "missed"}
    assert {"lowest bit of the first element", "lowest bit of the last element"} <= missed
    assert "left at zero" not in missed


def test_an_alarm_over_nothing_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changing = next(m for m in MUTATIONS if m.name == "left at zero")
    false = Mutation("must not fail", "really a change", changing.plant, harmless=True)
    monkeypatch.setattr(module, "MUTATIONS", (false,))
    record = selftest(*small(tmp_path), Trial(per_rule=1))
    assert outcomes(record)["really a change"] == {"false alarm"}
    assert not record.passed


def test_a_conversion_that_fails_shows_no_mutation(tmp_path: Path) -> None:
    made_pair = make_pair(tmp_path)
    made_pair.change(final_norm=np.zeros(10, np.float32))
    pair = Pair(source=made_pair.source, target=made_pair.target)
    with pytest.raises(GateError, match="final_norm"):
        selftest(pair, made_pair.claims, Trial())
    made_pair.change(final_norm=None)
    with pytest.raises(UsageError, match="add up"):
        selftest(pair, made_pair.claims, Trial())


def test_what_changes_no_value_is_not_said_to_be_missed(tmp_path: Path) -> None:
    made_pair = make_pair(tmp_path)
    source = {name: np.ones_like(a) for name, a in _loaded(made_pair.source).items()}
    target = {name: np.ones_like(a) for name, a in _loaded(made_pair.target).items()}
    save_file(source, made_pair.source)
    save_file(target, made_pair.target)
    pair = Pair(source=made_pair.source, target=made_pair.target)
    record = selftest(pair, made_pair.claims, Trial())
    assert record.passed
    neutral = {row.mutation for row in record.rows if row.why.startswith("value-neutral")}
    assert {"exchanged with another of its rule", "shifted by one element"} <= neutral


def _loaded(path: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return dict(load_file(path))


def test_shards_that_are_mixed_up_are_caught(tmp_path: Path) -> None:
    made_pair = make_pair(tmp_path)
    target = tmp_path / "sharded"
    target.mkdir()
    arrays = _loaded(made_pair.target)
    names = sorted(arrays)
    places = {name: f"model-{1 + (i > 2)}-of-2.safetensors" for i, name in enumerate(names)}
    for shard in set(places.values()):
        save_file({n: arrays[n] for n in names if places[n] == shard}, target / shard)
    index = {"metadata": {}, "weight_map": places}
    (target / "model.safetensors.index.json").write_text(json.dumps(index))
    record = selftest(
        Pair(source=made_pair.source, target=target), made_pair.claims, Trial(per_rule=1)
    )
    assert record.passed
    caught = {row.mutation for row in record.rows if row.section == "files"
              and row.outcome == "caught"}  # fmt: skip
    assert len(caught) >= 10
    assert "two shards under each other's name" in caught
    assert not [p for p in tmp_path.rglob("*") if "copy" in p.name]


@pytest.mark.parametrize("kind", ["plain", "chunks", "flat", "held"])
def test_an_overlay_changes_what_it_is_to_change_and_no_more(kind: str, tmp_path: Path) -> None:
    words = np.arange(7 * 9, dtype=np.uint32).reshape(7, 9)
    leaf = store_of(tmp_path / "s", {"w": words}, {"w": kind}).leaves["w"]
    patches = {0: b"\xff" * 4, 31: b"\x01\x02\x03\x04", 62: b"\0\0\0\x80"}
    expected = (words + 1).reshape(-1)
    for place, data in patches.items():
        expected[place] = np.frombuffer(data, "<u4")[0]
    changed = overlaid(leaf, lambda w: w + w.dtype.type(1), patches, n=10)
    assert np.array_equal(_read(changed), expected.reshape(7, 9))
    assert np.array_equal(_read(overlaid(leaf)), words)


def _read(leaf: Leaf) -> Any:
    """All of a leaf, chunk by chunk."""
    storage: Any = leaf.storage
    whole = np.zeros(leaf.grid_shape if not storage.flat else leaf.n_elements, np.uint32)
    grid = [range(-(-n // c)) for n, c in zip(whole.shape, storage.shape, strict=True)]
    for index in np.ndindex(*map(len, grid)):
        cut = tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, storage.shape, strict=True))
        out = np.zeros(whole[cut].nbytes, np.uint8)
        storage.read(index, out)
        whole[cut] = out.view("<u4").reshape(whole[cut].shape)
    return whole.reshape(leaf.grid_shape)


def test_the_verb_says_what_came_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair, claims = small(tmp_path)
    words = ["verify", "selftest", str(pair.source), str(pair.target), "--claims", str(claims)]
    assert main([*words, "--per-rule", "1", "--out", str(tmp_path / "out.json")]) == 0
    said = capsys.readouterr().out
    assert "VERDICT: PASS" in said
    assert "another leaf used twice: caught" in said
    assert Selftest.load(tmp_path, "out.json").passed
    assert main([*words, "--per-rule", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True


def test_the_budget_is_refused_before_anything_is_planted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair, claims = small(tmp_path)
    words = ["verify", "selftest", str(pair.source), str(pair.target), "--claims", str(claims)]
    assert main([*words, "--max-memory", "1MiB"]) == 5
    assert "--max-memory" in capsys.readouterr().err


def test_a_clean_copy_of_this_conversion_passes_as_it_is(tmp_path: Path) -> None:
    pair, claims = made(tmp_path, tensors())
    assert check(pair.source, pair.target, claims).value_exact
    assert len(open_store(pair.target).leaves) > 40


def test_what_is_larger_than_the_room_is_not_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mutant, "MAX_ROOM", 500)  # bytes: of a rule with a larger leaf none
    pair, claims = made(tmp_path, tensors())
    record = selftest(pair, claims, Trial(per_rule=1, sections=("attention", "axes")))
    assert record.passed
    caught = {row.mutation for row in record.rows if row.outcome == "caught"}
    assert {"square leaf transposed", "rope permutation omitted", "heads permuted"} <= caught
    whys = {row.why for row in record.rows if row.mutation == "shifted by one element"}
    assert any("room" in why for why in whys)
    assert not [row.mutation for row in record.rows if row.named == "no"]


def test_a_rule_whose_largest_leaf_is_too_large_shows_it_on_a_smaller_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = tmp_path / "claims.toml"
    claims.write_text('schema = "lockstep.claims/1"\n[[claim]]\ntarget = "n.{x:str}"\n'
                      'source = "{x}"\n')  # fmt: skip
    rng = np.random.default_rng(0)
    arrays = {"a": rng.standard_normal((20, 30)), "b": rng.standard_normal((4, 5))}
    save_file(arrays, tmp_path / "old.safetensors")
    save_file({f"n.{x}": a for x, a in arrays.items()}, tmp_path / "new.safetensors")
    monkeypatch.setattr(mutant, "MAX_ROOM", 1000)
    pair = Pair(source=tmp_path / "old.safetensors", target=tmp_path / "new.safetensors")
    record = selftest(pair, claims, Trial(per_rule=1))
    rows = [row for row in record.rows if row.mutation == "shifted by one element"]
    assert [(row.place, row.outcome) for row in rows] == [("n.b", "caught")]
