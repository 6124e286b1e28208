"""Converters that `verify derive` runs: those that fail, and those that somebody else wrote."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from derive_bench import FF, VOCAB, WIDTH, Bench, leaf_of, tiny
from safetensors.numpy import load_file, save_file

from lockstep.artifacts.derivation import Derivation
from lockstep.cli.main import main
from lockstep.errors import EnvironmentLacks, InputError, UsageError
from lockstep.verify import check
from lockstep.verify.derivation.converter import Converter
from lockstep.verify.derivation.derive import Request, derive

Said = pytest.CaptureFixture[str]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


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
from lockstep.verify.derivation.template_runs import read_words
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
