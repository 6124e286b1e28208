"""`lockstep verify derive`: converters of every kind, run on markers; what they do is read off."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lockstep.artifacts.derivation import Derivation, DerivedLeaf
from lockstep.cli.main import main
from lockstep.errors import EnvironmentLacks, InputError, UsageError
from lockstep.verify import check
from lockstep.verify.converter import Converter
from lockstep.verify.derive import Derivations, Request, derive

Said = pytest.CaptureFixture[str]
HEAD = """
import sys
import numpy as np
import json
from safetensors.numpy import load_file, save_file
source, target = sys.argv[1:3]
a = load_file(source)
def write(path, leaves):
    header, data = {}, b""
    for name, (kind, shape, raw) in leaves.items():
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [len(data), len(data + raw)]}
        data += raw
    text = json.dumps(header).encode()
    open(path, "wb").write(len(text).to_bytes(8, "little") + text + data)
out = {}
"""
N_HEADS, N_KV, SIZE, WIDTH, FF, VOCAB = 4, 2, 6, 20, 28, 11


def tiny(n_layers: int = 2, width: int = WIDTH, ff: int = FF, vocab: int = VOCAB) -> Any:
    """A small Llama; every size is another."""
    rng = np.random.default_rng(5)
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (vocab, width), "norm.weight": (width,)}
    for i in range(n_layers):
        shapes |= {
            f"layers.{i}.q.weight": (N_HEADS * SIZE, width),
            f"layers.{i}.k.weight": (N_KV * SIZE, width),
            f"layers.{i}.v.weight": (N_KV * SIZE, width),
            f"layers.{i}.o.weight": (width, N_HEADS * SIZE),
            f"layers.{i}.gate.weight": (ff, width),
            f"layers.{i}.up.weight": (ff, width),
            f"layers.{i}.norm.weight": (width,),
        }
    found = {name: rng.standard_normal(s).astype(np.float32) for name, s in shapes.items()}
    return found | {"step": np.array(17, np.int64)}


class Bench:
    """A template, and converters written to files beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.template = folder / "tiny.safetensors"
        save_file(tiny(), self.template)

    def command(self, body: str, head: str = HEAD) -> str:
        script = self.folder / "convert.py"
        script.write_text(head + body)
        return f"{shlex.quote(sys.executable)} {shlex.quote(str(script))} {{source}} {{target}}"

    def derive(self, body: str, head: str = HEAD, **options: Any) -> Derivations:
        timeout_s = options.pop("timeout_s", 60.0)
        template = options.pop("template", self.template)
        converter = Converter(self.command(body, head), timeout_s)
        return derive(Request(template=template, converter=converter, **options))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def leaf_of(record: Derivation, target: str) -> DerivedLeaf:
    (found,) = (leaf for leaf in record.leaves if leaf.target == target)
    return found


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


# --- converters that fail


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('raise SystemExit("no such model")', "no such model"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "got signal 11"),
        ("print('done')", "got nothing"),
        ("open(target, 'wb').write(b'garbage' * 9)", "expected a checkpoint at {target}"),
        ("save_file({}, target)", "without any"),
    ],
)
def test_a_converter_that_fails_is_an_error_for_a_person(
    bench: Bench, capfd: Said, body: str, expected: str
) -> None:
    words = ["verify", "derive", str(bench.template), "--run", bench.command(body)]
    assert main(words) == 4
    err = capfd.readouterr().err
    assert expected in err
    assert "hint: " in err
    assert "lockstep/" not in err  # no traceback of ours


def test_a_converter_that_hangs_is_ended_with_its_children(bench: Bench) -> None:
    note = bench.folder / "pid"
    head = "import subprocess, sys, time\n"
    body = f"""
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open({str(note)!r}, "w").write(str(child.pid))
time.sleep(600)
"""
    with pytest.raises(InputError, match="expected it to end within 1 s"):
        bench.derive(body, head, timeout_s=1.0)
    for _ in range(100):
        state = Path(f"/proc/{note.read_text()}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            break
        time.sleep(0.05)
    else:
        os.kill(int(note.read_text()), 9)
        pytest.fail("the child is still there")


def test_commands_that_cannot_be_run_are_refused(bench: Bench) -> None:
    with pytest.raises(UsageError, match="expected a command with"):
        Converter("convert {source}")
    with pytest.raises(UsageError, match="No closing quotation"):
        Converter("convert '{source} {target}")
    with pytest.raises(EnvironmentLacks, match="no-such-program"):
        derive(Request(template=bench.template,
                       converter=Converter("no-such-program {source} {target}")))  # fmt: skip


def test_templates_that_are_none_are_refused(bench: Bench, capfd: Said) -> None:
    large, text = bench.folder / "large.safetensors", bench.folder / "text.safetensors"
    header = b'{"w":{"dtype":"F32","shape":[16777217],"data_offsets":[0,67108868]}}'
    with large.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 67108868)
    text.write_text("no checkpoint")
    save_file({"b": np.ones(3, np.bool_)}, bench.folder / "bool.safetensors")
    for name, code, expected in (
        (large.name, 2, "expected a template of at most 16,777,216 elements, got 16,777,217"),
        (text.name, 4, f"{text}: expected a checkpoint"),
        ("bool.safetensors", 2, "got none; elements of BOOL hold no digits"),
        ("missing", 4, "cannot be read"),
    ):
        path = str(bench.folder / name)
        assert main(["verify", "derive", path, "--run", "cp {source} {target}"]) == code
        assert expected in capfd.readouterr().err


def test_no_shell_unless_asked(bench: Bench) -> None:
    command = "cp {source} {target}; true"
    with pytest.raises(InputError, match="exit status"):
        derive(Request(template=bench.template, converter=Converter(command)))
    converter = Converter(command, shell=True)
    assert derive(Request(template=bench.template, converter=converter)).record.outcome == "derived"


def test_markers_in_integers_are_taken_back_if_they_are_the_trouble(bench: Bench) -> None:
    body = 'assert a["step"] == 17\nsave_file({"n": a["norm.weight"], "step": a["step"]}, target)'
    record = bench.derive(body).record
    assert record.unmarked == {"step": "the converter failed with markers in it"}
    assert leaf_of(record, "n").transform == "identity"
    assert leaf_of(record, "step").status == "not derived"
    assert "the bits of step" in leaf_of(record, "step").why
    assert "the converter failed with markers in the integer leaves" in record.notes[0]


def test_a_converter_that_refuses_nan_is_derived_all_the_same(bench: Bench) -> None:
    body = """
assert all(np.isfinite(w).all() for w in a.values())
save_file({"n": a["norm.weight"].astype(np.float16)}, target)
"""
    record = bench.derive(body).record
    assert leaf_of(record, "n").transform.startswith("cast(F16, rounding=RNE")
    assert "does not take NaN" in record.notes[0]


def test_files_are_kept_and_refused_as_asked(bench: Bench, capfd: Said) -> None:
    command = bench.command('save_file({"n": a["norm.weight"]}, target + ".safetensors")')
    kept, out, record = (bench.folder / name for name in ("kept", "out.toml", "record.json"))
    words = ["verify", "derive", str(bench.template), "--run", command, "--keep", str(kept)]
    assert main([*words, "--out", str(out), "--record", str(record)]) == 0
    assert load_file(kept / "run_1" / "made" / "target.safetensors").keys() == {"n"}
    assert Derivation.load(bench.folder, "record.json").outcome == "derived"
    assert 'source = "norm.weight"' in out.read_text()
    assert main(words) == 2
    assert "expected an empty directory" in capfd.readouterr().err
    assert main([*words[:-2], "--out", str(out)]) == 2
    assert "expected a new file" in capfd.readouterr().err


LLAMA_CPP = """
import sys
sys.path.insert(0, TESTS)
from pathlib import Path
from conversions.gguf_files import _converted, write_gguf
from conversions.hf_models import config_of, tensors_of

source, target = map(Path, sys.argv[1:3])
config = config_of(source)
tensors = {name: array for hf_name, w in tensors_of(source).items()
           for name, array in _converted(hf_name, w, {**config, **CHANGES}, "F16")}
write_gguf(tensors, target, config=config, outtype="F16")
"""


def test_ready_claims_hold_against_the_rules_of_llama_cpp(tmp_path: Path) -> None:
    """And keys moved with a wrong number of heads (as in llama.cpp#2376) are named."""
    config = {
        "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": FF, "head_dim": 6,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": VOCAB, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    }  # fmt: skip
    parts = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj",
             "o": "self_attn.o_proj", "gate": "mlp.gate_proj", "up": "mlp.up_proj",
             "norm": "input_layernorm"}  # fmt: skip
    tensors = {}
    for name, array in tiny().items():
        layer, _, part = name.removesuffix(".weight").rpartition(".")
        if layer.startswith("layers."):
            tensors[f"model.{layer}.{parts[part]}.weight"] = array
    for i in range(2):
        block = f"model.layers.{i}."
        tensors[f"{block}post_attention_layernorm.weight"] = np.ones(WIDTH, np.float32)
        tensors[f"{block}mlp.down_proj.weight"] = np.ones((WIDTH, FF), np.float32)
    tensors["model.norm.weight"] = np.ones(WIDTH, np.float32)
    tensors["model.embed_tokens.weight"] = tiny()["embed.weight"]
    tensors["lm_head.weight"] = tiny()["embed.weight"]
    template = tmp_path / "hf"
    template.mkdir()
    save_file(tensors, template / "model.safetensors")
    (template / "config.json").write_text(json.dumps(config))
    for changes, expected in (({}, set()), ({"num_key_value_heads": 1}, {"k"})):
        script = tmp_path / "convert.py"
        text = LLAMA_CPP.replace("TESTS", repr(str(Path(__file__).parent)))
        script.write_text(text.replace("CHANGES", repr(changes)))
        command = f"{shlex.quote(sys.executable)} {shlex.quote(str(script))} {{source}} {{target}}"
        found = derive(Request(template=template, converter=Converter(command),
                               claims="ready:hf-llama-to-gguf"))  # fmt: skip
        differ = {row.target for row in found.record.claims if row.agrees is False}
        assert found.record.problems == ()
        assert len(found.record.claims) == len(found.record.leaves) == 21
        assert differ == {f"blk.{i}.attn_{x}.weight" for i in range(2) for x in expected}
        assert found.record.outcome == ("differs" if expected else "derived")


READING = """
import sys
from pathlib import Path
import numpy as np
from safetensors.numpy import save_file
from lockstep.formats.open_store import open_store
from lockstep.verify.trial import read_words
store = open_store(Path(sys.argv[1]))
save_file({name: words.view(np.float32).reshape(store.leaves[name].shape)
           for name, words in read_words(store).items()}, sys.argv[2])
"""


@pytest.mark.torch
def test_leaves_on_the_same_bytes_are_tied_not_dropped(bench: Bench) -> None:
    import torch

    def write(path: Path, head: torch.Tensor) -> Path:
        torch.save({"embed": weight, "head": head, "view": weight[2:5]}, path)
        return path

    weight = torch.arange(35.0).reshape(7, 5)
    template = write(bench.folder / "tied.pt", weight)
    claims = bench.folder / "claims.toml"
    claims.write_text('schema = "lockstep.claims/1"\n[[claim]]\ntarget = "{x:any}"\nsource = "{x}"')
    found = bench.derive(READING, head="", template=template, claims=claims)
    assert [row.agrees for row in found.record.claims] == [True] * 3  # the same bytes by two names
    (tie,) = found.rules.ties
    assert tie.leaves == ("embed", "head")
    assert {rule.leaf for rule in found.rules.excuses if rule.kind == "drop"} == {"view"}
    save_file({"embed": weight.numpy(), "head": weight.numpy(), "view": weight[2:5].numpy()},
              bench.folder / "made.safetensors")  # fmt: skip
    assert check(template, bench.folder / "made.safetensors", found.rules).value_exact
    untied = write(bench.folder / "untied.pt", weight + 1)
    assert not check(untied, bench.folder / "made.safetensors", found.rules).value_exact


@pytest.mark.torch
@pytest.mark.slow
def test_transformers_itself_is_a_converter(tmp_path: Path) -> None:
    """from_pretrained and save_pretrained in bfloat16, with tied embeddings."""
    from conversions.hf_models import saved, tiny

    template = saved(tiny("qwen3", 2, hidden_size=40), tmp_path / "hf")
    script = tmp_path / "convert.py"
    script.write_text(
        "import sys, torch\nfrom transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)\n"
        "model.save_pretrained(sys.argv[2])\n"
    )
    command = f"{shlex.quote(sys.executable)} {shlex.quote(str(script))} {{source}} {{target}}"
    found = derive(Request(template=template, converter=Converter(command)))
    assert found.record.outcome == "derived"
    assert {leaf.element for leaf in found.record.leaves} == {"BF16"}
    assert all(leaf.transform.startswith("cast(BF16, rounding=RNE") for leaf in found.record.leaves)
    assert all(leaf.sources == (leaf.target,) for leaf in found.record.leaves)
