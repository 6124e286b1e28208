"""`lockstep verify derive`: what converters do is read off, and claims held against it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from derive_bench import FF, VOCAB, WIDTH, Bench, leaf_of, tiny
from safetensors.numpy import save_file

from lockstep.artifacts.derivation import Derivation
from lockstep.cli.main import main
from lockstep.verify import check
from lockstep.verify.derivation.converter import Converter
from lockstep.verify.derivation.derive import Derivations

Said = pytest.CaptureFixture[str]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


# --- what is recovered

CONVERTER = """
def bf16(w):
    bits = np.ascontiguousarray(w).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)

def rope(w, n):
    return w.reshape(n, 2, len(w) // n // 2, -1).swapaxes(1, 2).reshape(w.shape)

n_layers = sum(name.endswith(".q.weight") for name in a)
for i in range(n_layers):
    q, k, v = (a[f"layers.{i}.{x}.weight"] for x in "qkv")
    out[f"blk.{i}.qkv"] = np.concatenate([rope(q, 4), rope(k, 2), v])
    out[f"blk.{i}.fused"] = np.concatenate(
        [q.reshape(2, 12, -1), k.reshape(2, 6, -1), v.reshape(2, 6, -1)], 1).reshape(48, -1)
    out[f"blk.{i}.o"] = a[f"layers.{i}.o.weight"].T
    out[f"blk.{i}.norm"] = a[f"layers.{i}.norm.weight"] + np.float32(1)
    gate, up = (a[f"layers.{i}.{x}.weight"] for x in ("gate", "up"))
    out[f"blk.{i}.gate_up"] = np.stack([gate, up], 1).reshape(-1, gate.shape[1])
    out[f"blk.{i}.half"] = gate.astype(np.float16)
out["ups"] = np.stack([a[f"layers.{i}.up.weight"].T for i in range(n_layers)])
out["tok"] = np.pad(a["embed.weight"], ((0, 3), (0, 0)))
out["head"] = a["embed.weight"][::-1]
out["negated"] = -a["norm.weight"][None]
out["norm16"] = bf16(a["norm.weight"])
out["step"] = a["step"]
out["ones"] = np.ones((2, 3), np.float32)
out["freqs"] = (10.0 ** np.arange(3)).astype(np.float32)
kinds = {"float32": "F32", "float16": "F16", "uint16": "BF16", "int64": "I64"}
write(target, {name: (kinds[w.dtype.name], w.shape, np.ascontiguousarray(w).tobytes())
               for name, w in out.items()})
"""
RNE = "rounding=RNE, subnormals=keep"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bench, Derivations]:
    bench = Bench(tmp_path_factory.mktemp("whole"))
    return bench, bench.derive(CONVERTER)


def test_each_move_of_a_converter_is_recovered(whole: tuple[Bench, Derivations]) -> None:
    record = whole[1].record
    found = {leaf.target: leaf.transform for leaf in record.leaves if "blk.1" not in leaf.target}
    own = "[layers.0.q.weight: rope_half_to_interleaved(4); "
    own += "layers.0.k.weight: rope_half_to_interleaved(2)]"
    ups = "[layers.0.up.weight: transpose(); layers.1.up.weight: transpose()]"
    assert found == {
        "blk.0.qkv": f"{own} | concat(0)",
        "blk.0.fused": "qkv(4, 2, layout=per_kv_group)",
        "blk.0.o": "transpose()",
        "blk.0.norm": "add_one(compute=F32)",
        "blk.0.gate_up": "gate_up(interleaved, axis=0)",
        "blk.0.half": f"cast(F16, {RNE}, nan=raw, overflow=inf)",
        "ups": f"{ups} | stack(0)",
        "tok": "pad(0, 0, 3, 0.0)",
        "head": "flip(0)",
        "negated": "unsqueeze(0) | negate()",
        "norm16": leaf_of(record, "norm16").transform,
        "step": "identity",
        "ones": "",
        "freqs": "",
    }
    assert found["norm16"].startswith("cast(BF16, rounding=RNE")
    assert leaf_of(record, "blk.1.qkv").sources == (
        "layers.1.q.weight", "layers.1.k.weight", "layers.1.v.weight",
    )  # fmt: skip
    assert leaf_of(record, "ones").status == "constant"
    assert leaf_of(record, "freqs").status == "computed"
    assert leaf_of(record, "tok").n_constant == 3 * WIDTH
    assert leaf_of(record, "tok").n_mapped == VOCAB * WIDTH
    assert record.outcome == "derived"
    assert record.unused == ()
    assert record.n_runs == 4
    again = Derivation.from_document(json.loads(json.dumps(record.document())), "record")
    assert again == record


def test_what_was_derived_proves_a_larger_conversion(
    whole: tuple[Bench, Derivations], tmp_path: Path
) -> None:
    """Other sizes and more layers than the template, and one bit changed is found."""
    bench, found = whole
    source, target = tmp_path / "large.safetensors", tmp_path / "made.safetensors"
    save_file(tiny(n_layers=2, width=44, ff=36, vocab=51), source)
    converter = Converter(bench.command(CONVERTER), 60.0)
    (tmp_path / "run").mkdir()
    converter.convert(source, tmp_path / "run").rename(target)
    report = check(source, target, found.rules)
    assert [p.message for p in report.problems] == []
    assert report.value_exact
    assert report.mapping == "shared with the converter"
    changed = bytearray(target.read_bytes())
    changed[8 + int.from_bytes(changed[:8], "little") + 400] ^= 1
    target.write_bytes(bytes(changed))
    (bad,) = (row for row in check(source, target, found.rules).claims if row.verdict == "FAIL")
    assert bad.target == "blk.0.qkv"


def test_the_file_that_is_written_gathers_layers(whole: tuple[Bench, Derivations]) -> None:
    text = whole[1].rules.to_toml()
    assert 'mapping = "shared with the converter"' in text
    assert 'target = "blk.{layer:int}.o"\nsource = "layers.{layer}.o.weight"' in text
    assert (
        'source = "layers.{layer:int}.up.weight"\ntransform = ["transpose()", "stack(0)"]' in text
    )


def test_types_of_few_digits_get_small_markers(bench: Bench) -> None:
    """FP8 holds integers to 16: more runs, and the map is as exact."""
    header = {
        "w": {"dtype": "F8_E4M3", "shape": [5, 7], "data_offsets": [0, 35]},
        "i": {"dtype": "I8", "shape": [3, 2], "data_offsets": [35, 41]},
    }
    text = json.dumps(header).encode()
    template = bench.folder / "fp8.safetensors"
    template.write_bytes(len(text).to_bytes(8, "little") + text + bytes(range(41)))
    head = "import sys, json\nsource, target = sys.argv[1:3]\n"
    body = """
data = open(source, "rb").read()
n = int.from_bytes(data[:8], "little")
names = json.loads(data[8 : 8 + n])
at = 8 + n + names["w"]["data_offsets"][0]
w = data[at : at + 35]
rows = [w[7 * i : 7 * i + 7] for i in range(5)]
turned = bytes(rows[i][j] for j in range(7) for i in range(5))
header = json.dumps({"w": {"dtype": "F8_E4M3", "shape": [7, 5], "data_offsets": [0, 35]}})
open(target, "wb").write(len(header).to_bytes(8, "little") + header.encode() + turned)
"""
    record = bench.derive(body, head, template=template).record
    assert leaf_of(record, "w").transform == "transpose()"
    assert record.highest_digit == 14
    assert record.n_runs == 3  # two digits and random values: nothing was cast
    assert record.unused == ("i",)


VALUES = """
w = a["layers.0.o.weight"]
bits = a["norm.weight"].view(np.uint32)
save_file({
    "merged": a["layers.0.up.weight"] + a["layers.1.up.weight"],
    "eighth": w * np.float32(0.125),
    "root": w * np.float32(24**0.5),
    "cut": (bits & np.uint32(0xFFFF0000)).view(np.float32),
    "whole": a["norm.weight"].astype(np.int8),
    "step8": a["step"].astype(np.int8)[None],
    "random": np.random.default_rng().standard_normal(7),
}, target)
"""


def test_changes_of_values_are_found_or_said_not_to_be(bench: Bench) -> None:
    found = bench.derive(VALUES)
    record = found.record
    assert record.highest_digit == 126  # as the target has I8, which the first run showed
    transforms = {leaf.target: leaf.transform for leaf in record.leaves if leaf.transform}
    cut = transforms.pop("cut")
    assert cut.startswith("cast(BF16, rounding=RTZ")  # BF16 on the way
    assert "| cast(F32" in cut
    assert transforms == {
        "eighth": "scale(0.125)",
        "root": "scale(4.898979485566356, compute=F32)",
        "step8": "unsqueeze(0) | cast(I8, overflow=wrap)",
    }
    whys = {leaf.target: leaf.why for leaf in record.leaves if leaf.status == "not derived"}
    assert whys.keys() == {"merged", "whole", "random"}
    assert "no known move of single elements" in whys["merged"]
    assert "no known move of values" in whys["whole"]  # no rule cuts fractions off
    assert record.outcome == "partly derived"
    # what they are made of may be used: nothing is said to be dropped
    assert {rule.kind for rule in found.rules.excuses} <= {"duplicate"}


def test_a_map_without_any_order_is_derived_and_said_to_be_so(bench: Bench) -> None:
    template = bench.folder / "large.safetensors"
    save_file({"w": np.zeros((100, 90), np.float32), "o": np.zeros(7, np.float32)}, template)
    body = """
order = np.random.default_rng(0).permutation(9000)
save_file({"w": a["w"].ravel()[order], "few": a["o"][[3, 1, 1, 0]].reshape(2, 2)}, target)
"""
    found = bench.derive(body, template=template)
    leaf = leaf_of(found.record, "w")
    assert (leaf.status, leaf.transform, leaf.n_pieces) == ("derived", "", None)
    assert leaf.n_mapped == 9000
    assert "no regular way" in leaf.why
    few = leaf_of(found.record, "few")
    assert few.transform == ""
    assert few.pieces[0].startswith("o 3 -> 0: ")
    assert found.rules.claims == ()
    assert [rule.kind for rule in found.rules.excuses] == []  # so that coverage fails


# --- claims against it

MLP = ", ".join(f"'layers.{i}.{x}.weight'" for i in range(2) for x in ("gate", "up"))
CLAIMS = """schema = "lockstep.claims/1"
[[claim]]
target = "up.{i:int}"
source = "layers.{i}.up.weight"
transform = ["transpose()"]
[[claim]]
target = "gate.{i:int}"
source = "layers.{i}.gate.weight"
[[claim]]
target = "norm"
source = "norm.weight"
transform = ["add_one()"]
[[drop]]
source = "{x:any}"
where = "x not in ['norm.weight'] and x not in [MLP]"
reason = "not needed"
""".replace("MLP", MLP)
RIGHT = """
for i in range(2):
    out[f"up.{i}"] = np.ascontiguousarray(a[f"layers.{i}.up.weight"].T)
    out[f"gate.{i}"] = a[f"layers.{i}.gate.weight"]
out["norm"] = a["norm.weight"] + np.float32(1)
save_file(out, target)
"""


def claim_file(bench: Bench, text: str = CLAIMS) -> Path:
    path = bench.folder / "claims.toml"
    path.write_text(text)
    return path


def test_claims_that_say_what_the_converter_does_agree(bench: Bench, capfd: Said) -> None:
    words = ["verify", "derive", str(bench.template), "--run", bench.command(RIGHT)]
    words += ["--claims", str(claim_file(bench))]
    assert main(words) == 0
    out, err = capfd.readouterr()
    assert out.splitlines()[-1] == (
        "VERDICT: PASS: the map of 5 leaves is derived; 5 claims agree with it, element by element"
    )
    assert "a run with random values" in err


def test_gate_and_up_exchanged_in_the_converter_is_named(bench: Bench, capfd: Said) -> None:
    """The same shape and type, layer 1 only: a table that is wrong on both sides shows here."""
    wrong = RIGHT.replace(
        'out["norm"]',
        'out["up.1"] = np.ascontiguousarray(a["layers.1.gate.weight"].T)\n'
        'out["gate.1"] = a["layers.1.up.weight"]\nout["norm"]',
    )
    words = ["verify", "derive", str(bench.template), "--run", bench.command(wrong)]
    path = bench.folder / "record.json"
    assert main([*words, "--claims", str(claim_file(bench)), "--record", str(path)]) == 1
    said = capfd.readouterr().out
    record = Derivation.load(bench.folder, "record.json")
    assert record.outcome == "differs"
    differ = {row.target: row for row in record.claims if row.agrees is False}
    assert differ.keys() == {"up.1", "gate.1"}
    row = differ["up.1"]
    assert (
        row.why
        == "the claim takes it from layers.1.up.weight, the converter from layers.1.gate.weight"
    )
    assert row.n_differ == WIDTH * FF
    assert row.claimed is not None
    assert row.derived is not None
    assert (row.claimed.leaf, row.claimed.index) == ("layers.1.up.weight", (0, 0))
    assert (row.derived.leaf, row.derived.index) == ("layers.1.gate.weight", (0, 0))
    assert "first at [0, 0]: claimed layers.1.up.weight[0, 0], converted" in said
    assert said.splitlines()[-1].startswith("VERDICT: FAIL: the claims say of 2 leaves")


def test_the_first_element_that_differs_is_named(bench: Bench, capfd: Said) -> None:
    """Other places, other values, a leaf that is called new; and claims that do not add up."""
    wrong = RIGHT.replace('"].T)', '"].reshape(20, 28))').replace(" + np.float32(1)", "")
    text = CLAIMS + ('[[claim]]\ntarget = "missing"\nsource = "norm.weight"\n')
    text = text.replace('target = "gate.{i:int}"\nsource = "layers.{i}.gate.weight"',
                        'target = "gate.1"\nsource = "layers.1.gate.weight"')  # fmt: skip
    text += '[[new]]\ntarget = "gate.0"\nreason = "made up"\n'
    words = ["verify", "derive", str(bench.template), "--run", bench.command(wrong), "--json"]
    assert main([*words, "--claims", str(claim_file(bench, text))]) == 1
    record = Derivation.from_document(json.loads(capfd.readouterr().out), "stdout")
    rows = {row.target: row for row in record.claims}
    assert "elements of layers.0.up.weight are at other places" in rows["up.0"].why
    assert rows["up.0"].index == (0, 1)
    assert rows["up.0"].claimed is not None
    assert rows["up.0"].derived is not None
    assert rows["up.0"].claimed.index == (1, 0)
    assert rows["up.0"].derived.index == (0, 1)
    assert "their values are not" in rows["norm"].why
    assert rows["norm"].claimed == rows["norm"].derived
    why = "the claims call it new, the converter takes it from layers.0.gate.weight"
    assert rows["gate.0"].why == why
    assert rows["gate.1"].agrees is True
    assert "missing" in record.problems[0].message


def test_claims_that_do_not_add_up_are_exit_code_2(bench: Bench, capfd: Said) -> None:
    text = CLAIMS.partition("[[drop]]")[0]
    words = ["verify", "derive", str(bench.template), "--run", bench.command(RIGHT)]
    assert main([*words, "--claims", str(claim_file(bench, text))]) == 2
    assert "the claims do not add up" in capfd.readouterr().out


# --- converters that decide by values


SORTING = """
w, up = a["embed.weight"], a["layers.0.up.weight"]
whole = (w == np.round(w)).all()
out = {
    "rows": w[np.argsort(w[:, 0])],
    "all": np.sort(up, axis=None),
    "turned": w[::-1].copy() if w.min() < 0 else w,
    "rounded": (w if whole else w[::-1]).astype(np.float16),
    "other": a["layers.0.gate.weight"] if whole else up,
    "shape": w if whole else w.T.copy(),
    "innocent": up.T.copy(),
}
if not whole:
    out["sometimes"] = w
save_file(out, target)
"""


def test_a_converter_that_decides_by_values_is_rejected(bench: Bench, capfd: Said) -> None:
    words = ["verify", "derive", str(bench.template), "--run", bench.command(SORTING), "--json"]
    assert main(words) == 1
    record = Derivation.from_document(json.loads(capfd.readouterr().out), "stdout")
    assert record.outcome == "data-dependent"
    assert {leaf.target for leaf in record.leaves if leaf.status == "data-dependent"} == {
        "rows", "all", "turned", "rounded", "other", "shape", "sometimes",
    }  # fmt: skip
    assert leaf_of(record, "innocent").transform == "transpose()"
    assert "F32 [11, 20] for some values, F32 [20, 11]" in leaf_of(record, "shape").why
