"""Suggested claim files: right on real conversions, open about what contents do not show."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from claim_stores import MATRIX, store
from conversions import c49k, fused, gguf_files, meta_llama, scanned
from conversions.conversion import Array, Conversion, Tensors, interleaved
from conversions.faults import LAYER_ORDER, WEIGHT_FAULTS
from conversions.toy import write_safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.cli.main import main
from lockstep.errors import BudgetError
from lockstep.verify import check
from lockstep.verify.api import Pair
from lockstep.verify.claims.claim_file import load_claims, parse_claims
from lockstep.verify.claims.resolve import resolve
from lockstep.verify.claims.rules import ClaimFile
from lockstep.verify.engine.examine import Options
from lockstep.verify.suggestion.generalise import Made, Part, breaks, generalise
from lockstep.verify.suggestion.suggest import Suggestion, suggest

CONVERSIONS: dict[str, Callable[[Path], Conversion]] = {
    "llama to GGUF": partial(
        gguf_files.hf_to_gguf, "llama", stored="BF16", outtype="F16", attention_bias=True
    ),
    "gemma2 to GGUF": partial(gguf_files.hf_to_gguf, "gemma2", stored="BF16", outtype="BF16"),
    "gpt-neox to GGUF": partial(gguf_files.hf_to_gguf, "gpt_neox", outtype="F16"),
    "phi3 apart": fused.phi3_to_split,
    "HF to megatron": fused.hf_to_megatron,
    "HF to flax scan": scanned.llama_to_flax_scan,
    "c49k": c49k.c49k,
}
BACK: dict[str, tuple[str, Callable[[Conversion, Path], Conversion]]] = {
    "gemma2 from GGUF": ("gemma2 to GGUF", gguf_files.gguf_to_hf),
    "phi3 fused": ("phi3 apart", fused.split_to_phi3),
    "megatron to HF": ("HF to megatron", fused.megatron_to_hf),
    "flax scan to HF": ("HF to flax scan", scanned.back_to_hf),
}


@pytest.fixture(scope="module")
def conversion(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Conversion]:
    """Makes each conversion once."""
    root = tmp_path_factory.mktemp("suggest")
    made: dict[str, Conversion] = {}

    def get(name: str) -> Conversion:
        if name not in made:
            path = root / name.replace(" ", "-")
            path.mkdir()
            if name in BACK:
                forth, back = BACK[name]
                made[name] = back(get(forth), path)
            else:
                made[name] = CONVERSIONS[name](path)
        return made[name]

    return get


def suggested(source: Path, target: Path, shapes_only: bool = False) -> Suggestion:
    stores = Pair(source=source, target=target).open()
    return suggest(*stores, Options(), shapes_only=shapes_only)


def rules(found: Suggestion) -> ClaimFile:
    return parse_claims(tomllib.loads(found.toml), "suggested")


@pytest.mark.torch
@pytest.mark.parametrize("name", [*CONVERSIONS, *BACK])
def test_what_is_suggested_verifies_a_real_conversion(
    name: str, conversion: Callable[[str], Conversion]
) -> None:
    made = conversion(name)
    found = suggested(made.source, made.target)
    assert found.unexplained == {"source": (), "target": ()}
    assert found.breaks == ()
    report = check(made.source, made.target, rules(found), jobs=1)
    assert report.value_exact
    assert report.problems == ()
    assert report.mapping == "suggested from the checkpoints"
    assert {row.grade for row in report.claims} <= {"not graded", "indistinguishable"}


@pytest.mark.torch
@pytest.mark.parametrize("name", ["llama to GGUF", "phi3 apart", "HF to flax scan", "c49k"])
def test_what_is_suggested_says_what_the_ready_file_says(
    name: str, conversion: Callable[[str], Conversion]
) -> None:
    made = conversion(name)
    found = suggested(made.source, made.target)
    stores = Pair(source=made.source, target=made.target).open()
    ours = resolve(rules(found), *stores).claims
    theirs = resolve(load_claims(f"ready:{made.claims}"), *stores).claims
    assert [(c.target, c.sources, c.layout) for c in ours] == [
        (c.target, c.sources, c.layout) for c in theirs
    ]
    assert found.n_rules < len(ours) or name == "HF to flax scan"  # layers share a rule


@pytest.mark.torch
def test_a_swap_is_proposed_as_it_is_and_warned_of(
    conversion: Callable[[str], Conversion], tmp_path: Path
) -> None:
    made = conversion("llama to GGUF")
    target = made.planted(WEIGHT_FAULTS["gate and up swapped in one layer"], tmp_path / "m.gguf")
    found = suggested(made.source, target)
    assert set(found.breaks) == {"blk.1.ffn_gate.weight", "blk.1.ffn_up.weight"}
    warnings = [line for line in found.toml.splitlines() if line.startswith("# warning")]
    assert len(warnings) == 2
    assert all("layer 1 breaks the pattern of the others" in line for line in warnings)
    assert check(made.source, target, rules(found), jobs=1).value_exact  # as it is


@pytest.mark.torch
def test_layers_in_the_order_of_their_names_are_seen(
    conversion: Callable[[str], Conversion], tmp_path: Path
) -> None:
    twelve = gguf_files.hf_to_gguf("llama", tmp_path, n_layers=12)
    for fault in LAYER_ORDER.values():
        target = twelve.planted(fault, tmp_path / "planted" / "m.gguf")
        found = suggested(twelve.source, target)
        assert {name.split(".")[1] for name in found.breaks} >= {"2", "10", "11"}


@pytest.mark.torch
def test_a_damaged_leaf_is_not_explained(
    conversion: Callable[[str], Conversion], tmp_path: Path
) -> None:
    made = conversion("HF to megatron")
    target = made.planted(WEIGHT_FAULTS["one element 1 ULP up"], tmp_path / "mcore.pt")
    found = suggested(made.source, target)
    (name,) = found.unexplained["target"]
    assert f"# unexplained: {name}" in found.toml
    assert "# [[new]]" in found.toml
    assert '# reason = ""' in found.toml
    assert any("breaks the pattern" in line and name in line for line in found.toml.splitlines())
    assert not any(claim.target == name for claim in rules(found).claims)


@pytest.mark.torch
def test_meta_and_hf_lack_only_the_frequencies(tmp_path: Path) -> None:
    made = meta_llama.meta_to_hf(tmp_path)
    found = suggested(made.source, made.target)
    assert found.unexplained == {"source": ("rope.freqs",), "target": ()}
    assert '# [[drop]]\n# source = "rope.freqs"\n# reason = ""' in found.toml
    text = found.toml.replace("# [[drop]]", "[[drop]]").replace("# source =", "source =")
    decided = tmp_path / "decided.toml"
    decided.write_text(text.replace('# reason = ""', 'reason = "computed from the config"'))
    assert check(made.source, made.target, decided, jobs=1).value_exact


# --- made by hand


def drawn(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


@pytest.fixture
def pair(tmp_path: Path) -> Callable[[Tensors, Tensors], tuple[Path, Path]]:
    def write(source: Tensors, target: Tensors) -> tuple[Path, Path]:
        return (
            write_safetensors(source, tmp_path / "a.safetensors"),
            write_safetensors(target, tmp_path / "b.safetensors"),
        )

    return write


Write = Callable[[Tensors, Tensors], tuple[Path, Path]]
W, E = drawn(8, 12), drawn(20, 8)
PAIRS: dict[str, tuple[Tensors, Tensors, str]] = {
    "squeezed": ({"a": W[None]}, {"b": W}, "squeeze(0)"),
    "unsqueezed": ({"a": W}, {"b": W[:, None]}, "unsqueeze(1)"),
    "axes in another order": (
        {"a": drawn(2, 3, 4)}, {"b": drawn(2, 3, 4).transpose(2, 0, 1)}, "permute(2, 0, 1)"
    ),
    "seen as heads and turned": (
        {"a": W}, {"b": W.reshape(2, 4, 12).transpose(1, 0, 2)}, "reshape(2, 4, 12)"
    ),
    "rows padded": (
        {"a": E}, {"b": np.vstack([E, np.full((4, 8), 0.5, np.float32)])}, "pad(0, 0, 4"
    ),
    "rows cut off": ({"a": E}, {"b": E[:17]}, "slice(0, 0, 17)"),
    "gate and up row by row": (
        {"gate": W, "up": W + 1}, {"b": np.stack([W, W + 1], 1).reshape(16, 12)}, "interleaved"
    ),
    "gate and up row by row, apart": (
        {"b": np.stack([W, W + 1], 1).reshape(16, 12)}, {"gate": W, "up": W + 1}, "ungate_up(up"
    ),
    "halves turned round": (
        {"a": W}, {"b": np.vstack([W[4:], W[:4]])}, "flip(0)"
    ),
    "rotary pairs along the second axis": (
        {"a": W}, {"b": interleaved(W.T.copy(), 2).T}, "rope_half_to_interleaved(2, axis=1)"
    ),
    "experts stacked and fused": (
        {f"m.{e}.{p}": W + e + k for e in range(3) for k, p in ((0.25, "gate"), (0.5, "up"))},
        {"b": np.stack([np.vstack([W + e + 0.25, W + e + 0.5]).T for e in range(3)])},
        "concat(2)",
    ),
    "experts taken apart": (
        {"b": np.stack([np.vstack([W + e + 0.25, W + e + 0.5]).T for e in range(3)])},
        {f"m.{e}.{p}": W + e + k for e in range(3) for k, p in ((0.25, "gate"), (0.5, "up"))},
        "index(0, m)",
    ),
    "a head that is the embedding": ({"e": E}, {"e": E, "head": E}, "[[duplicate]]"),
    "heads in another order": (
        {"a": W},
        {"b": W.reshape(4, 2, 12)[[2, 0, 3, 1]].reshape(8, 12)},
        "heads(0, 4, [2, 0, 3, 1])",
    ),
    "columns in another order": ({"a": W}, {"b": W[:, ::-1][:, [3, *range(3), *range(4, 12)]]},
                                 "heads(1, 12, ["),
    "line breaks in names": ({"a\nb": W}, {'"\t': W.T}, "transpose()"),
    "names with braces": ({"{x}": W}, {"}{": W.T}, "transpose()"),
    "no elements": ({"a": W[:0]}, {"b": W[:0]}, 'source = "a"'),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_a_move_is_found(name: str, pair: Write) -> None:
    source, target, says = PAIRS[name]
    paths = pair(source, target)
    found = suggested(*paths)
    assert found.unexplained["target"] == ()
    assert says in found.toml
    report = check(*paths, rules(found), jobs=1)
    assert {row.verdict for row in report.claims} <= {"EXACT_BITS", "EXACT_UNDER"}
    assert all(problem.message.startswith("source") for problem in report.problems)


def test_equal_gains_are_told_apart_by_name_and_that_is_said(pair: Write) -> None:
    ones = np.ones(8, np.float32)
    old, new = ("input_layernorm", "post_attention_layernorm"), ("attn_norm", "ffn_norm")
    paths = pair(
        {f"model.layers.{i}.{name}.weight": ones for i in range(12) for name in old},
        {f"blk.{i}.{name}.weight": ones for i in range(12) for name in new},
    )
    found = suggested(*paths)
    assert {(rule.target, rule.sources[0].name) for rule in rules(found).claims} == {
        ("blk.{layer:int}.attn_norm.weight", "model.layers.{layer}.input_layernorm.weight"),
        ("blk.{layer:int}.ffn_norm.weight", "model.layers.{layer}.post_attention_layernorm.weight"),
    }
    assert len(found.unshown) == 24
    assert found.toml.count("# not shown by contents: 12 leaves") == 2


def test_what_went_together_elsewhere_decides_between_equals(pair: Write) -> None:
    zeros = np.zeros(4, np.float32)
    source = {f"{n}.bias": zeros for n in ("alpha", "beta")}
    source |= {"alpha.weight": drawn(4, 5), "beta.weight": drawn(4, 6)}
    target = {"x.bias": zeros, "y.bias": zeros, "x.weight": drawn(4, 6), "y.weight": drawn(4, 5)}
    made = {
        rule.target: rule.sources[0].name for rule in rules(suggested(*pair(source, target))).claims
    }
    assert made["x.bias"] == "beta.bias"
    assert made["y.bias"] == "alpha.bias"


def test_shapes_alone_propose_by_name_and_read_nothing(pair: Write) -> None:
    source = {f"l.{i}.{n}_proj": drawn(6, 4, seed=i) for i in range(2) for n in ("gate", "up")}
    target = {f"b.{i}.ffn_{n}": drawn(4, 6, seed=9) for i in range(2) for n in ("gate", "up")}
    found = suggested(*pair(source, target), shapes_only=True)
    assert found.shapes_only
    assert {(rule.target, rule.sources[0].name) for rule in rules(found).claims} == {
        ("b.{b:int}.ffn_gate", "l.{b}.gate_proj"),
        ("b.{b:int}.ffn_up", "l.{b}.up_proj"),
    }
    assert found.toml.count("not shown by contents") == 2
    assert "the contents of" not in found.toml


def test_a_copy_that_is_left_over_may_be_a_tie(pair: Write, tmp_path: Path) -> None:
    paths = pair({"embed": E, "head": E}, {"embed": E})
    found = suggested(*paths)
    assert found.unexplained == {"source": ("head",), "target": ()}
    assert "# head holds the bits of embed" in found.toml
    tied = tmp_path / "tied.toml"
    lines = found.toml.partition("# and if not")[0].splitlines()
    marks = ("# [[tie]]", "# side =", "# leaves =")
    tied.write_text("\n".join(x.removeprefix("# ") if x.startswith(marks) else x for x in lines))
    assert check(*paths, tied, jobs=1).value_exact


def test_elements_in_no_known_order_are_named(pair: Write) -> None:
    order = np.random.default_rng(3).permutation(96)
    found = suggested(*pair({"a": W}, {"b": W.ravel()[order].reshape(8, 12)}))
    assert found.unexplained["target"] == ("b",)
    assert "# b has the elements of a in some order" in found.toml


def test_checkpoints_that_have_nothing_to_do_with_each_other(pair: Write) -> None:
    source = {f"l.{i}.m{j}.w": drawn(4, 6, seed=100 * i + j) for i in range(20) for j in range(10)}
    target = {f"l.{i}.m{j}.w": drawn(4, 7, seed=100 * i + j) for i in range(20) for j in range(10)}
    found = suggested(*pair(source, target))
    assert found.n_claims == 0
    assert set(found.unexplained["source"]) == set(source)
    assert set(found.unexplained["target"]) == set(target)
    assert rules(found).claims == ()
    assert found.toml.count("# [[new]]") == 10  # layers share a proposal


def test_a_budget_that_is_too_small_is_refused(pair: Write) -> None:
    paths = pair({"a": W}, {"b": W})
    with pytest.raises(BudgetError):
        suggest(*Pair(source=paths[0], target=paths[1]).open(), Options(max_memory_bytes=1 << 20))


def test_large_leaves_stay_within_the_budget(tmp_path: Path) -> None:
    n, budget = 1 << 24, 96 << 20  # 64 MiB for each of two leaves on each side
    for path, names in ((tmp_path / "a.safetensors", "xy"), (tmp_path / "b.safetensors", "pq")):
        header = {
            name: {
                "dtype": "F32",
                "shape": [n // 64, 64],
                "data_offsets": [4 * n * i, 4 * n * i + 4 * n],
            }
            for i, name in enumerate(names)
        }
        text = json.dumps(header).encode()
        with path.open("wb") as file:  # sparse: all zero but for one element
            file.write(len(text).to_bytes(8, "little") + text)
            file.seek(4 * n - 40, 1)
            file.write(b"\x00\x00\x80\x3f")
            file.truncate(8 + len(text) + 8 * n)
    code = (
        "import sys; from lockstep.cli.main import main; from lockstep.verify.engine.budget import "
        "memory_now; code = main(sys.argv[1:]); print(memory_now().peak); sys.exit(code)"
    )
    words = ["verify", "suggest", "a.safetensors", "b.safetensors", "--out", "c.toml"]
    run = subprocess.run(
        [sys.executable, "-c", code, *words, "--max-memory", str(budget)],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert int(run.stdout.split()[-1]) <= budget
    pairs = {
        (rule.target, rule.sources[0].name) for rule in load_claims(tmp_path / "c.toml").claims
    }
    assert pairs == {("p", "x"), ("q", "y")}


def test_the_verb_writes_refuses_and_counts(
    pair: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = map(str, pair({"a": W, "old": E}, {"b": W.T}))
    out = tmp_path / "claims.toml"
    verb = ["verify", "suggest", source, target]
    assert main([*verb, "--out", str(out)]) == 0
    assert "unexplained in the source: 1 leaf" in capsys.readouterr().out
    assert load_claims(out).mapping == "suggested from the checkpoints"
    assert main([*verb, "--out", str(out)]) == 2
    assert main([*verb, "--out", str(out), "--force"]) == 0
    capsys.readouterr()
    assert main(verb) == 0
    assert capsys.readouterr().out == out.read_text()
    assert main([*verb, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["toml"] == out.read_text()
    assert main(["verify", "suggest", target, source]) == 1  # `old` comes from nowhere
    assert "unexplained in the target: 1 leaf" in capsys.readouterr().err
    assert main([*verb, "--max-memory", "1MiB"]) == 5
    assert main(["verify", "suggest", source, source]) == 2


# --- the template maker by itself


def one(target: str, source: str, *steps: str) -> Made:
    return Made(target, (Part((source,)),), steps)


def test_numbers_that_follow_become_expressions() -> None:
    sources = [f"s.{i}.w" for i in range(20)]
    found = [
        one(f"t.{i}.w", f"s.{2 * i + 3}.w", f"slice(0, {8 * i}, {8 * i + 8})") for i in range(5)
    ]
    (ruled,) = generalise(found, sources, [made.target for made in found])
    assert ruled.rule.target == "t.{t:int}.w"
    assert ruled.rule.sources[0].name == "s.{t * 2 + 3}.w"
    assert ruled.rule.transform == ("slice(0, t * 8, t * 8 + 8)",)


def test_a_rule_leaves_out_what_is_not_among_its_members() -> None:
    found = [one(f"t.{i}", f"s.{i}") for i in range(6) if i != 4] + [one("t.4", "u.4")]
    every = generalise(
        found, [f"{k}.{i}" for k in "su" for i in range(6)], [f"t.{i}" for i in range(7)]
    )
    larger = max(every, key=lambda ruled: len(ruled.members))
    assert set(larger.left_out) == {"t.4", "t.6"}
    assert larger.rule.where == "t not in [4, 6]"
    assert breaks(every)["t.4"] is larger


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 7)), min_size=1,
                max_size=14, unique_by=lambda row: row[:2]))  # fmt: skip
def test_rules_cover_each_finding_once_and_nothing_else(rows: list[tuple[int, int, int]]) -> None:
    names = [f"s.{i}.e.{j}.w" for i in range(8) for j in range(4)]
    every = [f"t.{i}.e.{j}.w" for i in range(6) for j in range(4)]
    found = [one(f"t.{i}.e.{j}.w", f"s.{k}.e.{j}.w") for i, j, k in rows]
    ruled = generalise(found, names, every)
    file = ClaimFile(claims=tuple(each.rule for each in ruled))
    stores = [store(dict.fromkeys(side, MATRIX)) for side in (names, every)]
    claims = resolve(parse_claims(tomllib.loads(file.to_toml()), "made"), *stores).claims
    assert {claim.target: claim.sources for claim in claims} == {
        made.target: made.parts[0].names for made in found
    }
    assert sum(len(each.members) for each in ruled) == len(found)
