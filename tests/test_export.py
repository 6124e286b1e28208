"""Exports to GGUF and Hugging Face directories, and the faults that their proof must catch."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import gguf
import numpy as np
import pytest
import safetensors
import tokenizers
from export_run import promoted_run
from tokenizer_files import bpe_metadata, nasty_texts
from tokenizer_files import write_gguf as write_model

from lockstep.artifacts import Check, RunDir
from lockstep.cli import export as verb
from lockstep.cli.main import main
from lockstep.engine import model as engine_model
from lockstep.engine.export_gguf import (
    differing,
    export_gguf,
    gguf_metadata,
    gguf_tensors,
)
from lockstep.engine.export_hf import export_hf
from lockstep.engine.source import Source, open_gguf, open_source
from lockstep.errors import EnvironmentLacks, InputError, UsageError
from lockstep.families import FAMILIES, Weight
from lockstep.formats import GGUFFile
from lockstep.formats.gguf_write import write_gguf
from lockstep.formats.to_write import TensorToWrite
from lockstep.passes import Target
from lockstep.proof import export as proof
from lockstep.proof.export_logits import Answers, Truth, greedy_check, logits_check
from lockstep.tokenizers import (
    GGUFTokenizer,
    HFTokenizer,
    hf_tokenizer_document,
    padded,
    vocabulary_of,
)
from lockstep.tokenizers.pre_tokenizers import pre_tokenizer

pytestmark = pytest.mark.usefixtures("quick_builds")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return promoted_run(tmp_path_factory.mktemp("export") / "run")


@pytest.fixture(scope="module")
def source(run: RunDir) -> Source:
    return open_source(str(run.path))


def failing(checks: list[Check]) -> list[str]:
    return [check.id for check in checks if check.verdict == "fail"]


def exported(capfd: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    """What the verb says of an export that succeeds."""
    code = main(["export", *args, "--json"])
    out, err = capfd.readouterr()
    assert code == 0, err + out
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.mark.torch
@pytest.mark.parametrize(
    "wanted",
    ["F32", "Q8_0", *(pytest.param(t, marks=pytest.mark.slow) for t in ("F16", "BF16"))],
)
def test_a_run_as_gguf_is_the_run_to_every_reader(
    run: RunDir, tmp_path: Path, capfd: pytest.CaptureFixture[str], wanted: str
) -> None:
    path = tmp_path / "m.gguf"
    told = exported(capfd, str(run.path), "--to", "gguf", "--type", wanted, "-o", str(path))
    verdicts = {check["id"]: check["verdict"] for check in told["checks"]}
    assert {"settings", "weights", "tokenizer", "logits", "greedy_transformers"} <= set(verdicts)
    assert set(verdicts.values()) == {"pass"}, told["checks"]
    assert {"greedy_llama_cpp", "logits_llama_cpp", "tokenizer_llama_cpp"} <= set(verdicts)
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]

    reader = gguf.GGUFReader(path)
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    assert len(tokens) == 200
    assert reader.fields["tokenizer.ggml.add_bos_token"].contents() is False
    kinds = reader.fields["tokenizer.ggml.token_type"].contents()
    assert kinds[tokens.index("[circle]")] == 4
    assert kinds[tokens.index("<eos>")] == 3
    types = {t.name: t.tensor_type.name for t in reader.tensors}
    assert types["output_norm.weight"] == "F32"
    assert types["blk.0.ffn_gate.weight"] == wanted
    # 48 columns are no whole blocks of Q8_0.
    assert types["blk.0.ffn_down.weight"] == ("F16" if wanted == "Q8_0" else wanted)


@pytest.mark.torch
@pytest.mark.parametrize("wanted", ["F32", "F16", "BF16"])
def test_a_run_as_directory_is_the_run_to_transformers(
    run: RunDir, tmp_path: Path, capfd: pytest.CaptureFixture[str], wanted: str
) -> None:
    path = tmp_path / "hf"
    told = exported(capfd, str(run.path), "--to", "hf", "--type", wanted, "-o", str(path))
    verdicts = {check["id"]: check["verdict"] for check in told["checks"]}
    assert set(verdicts.values()) == {"pass"}, told["checks"]
    assert {"tokenizer_transformers", "logits_transformers", "greedy_transformers"} <= set(verdicts)
    assert {"generation_config.json", "tokenizer_config.json"} <= {p.name for p in path.iterdir()}
    with safetensors.safe_open(path / "model.safetensors", "np") as file:
        names = file.keys()
        assert {file.get_slice(name).get_dtype() for name in names} == {wanted}
    name = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[wanted]
    assert json.loads((path / "config.json").read_text())["torch_dtype"] == name
    assert [p.name for p in tmp_path.iterdir()] == ["hf"]


def rewritten(
    source: Source, path: Path,
    metadata: Callable[[dict[str, Any]], None] = lambda m: None,
    tensors: Callable[[dict[str, TensorToWrite]], None] = lambda t: None,
) -> list[Check]:  # fmt: skip
    """The proof of an export with something else in it."""
    keys, planned = gguf_metadata(source, "F32"), gguf_tensors(source, "F32")
    metadata(keys)
    tensors(planned)
    write_gguf(path, keys, planned, force=True)
    return proof.prove_gguf(source, path, "F32")


def flip(name: str, planned: dict[str, TensorToWrite]) -> None:
    plain = planned[name]

    def rows() -> Any:
        array = np.array(plain.rows())
        array.reshape(-1).view(np.uint32)[7] ^= 1
        return array

    planned[name] = TensorToWrite(plain.shape, plain.stored, rows)


def swap(planned: dict[str, TensorToWrite]) -> None:
    one, other = "blk.1.ffn_gate.weight", "blk.1.ffn_up.weight"
    planned[one], planned[other] = planned[other], planned[one]


def less(key: str, metadata: dict[str, Any]) -> None:
    metadata[key] = metadata[key][:-1]


@pytest.mark.parametrize(
    ("metadata", "tensors", "caught_by"),
    [
        (None, partial(flip, "blk.0.attn_q.weight"), "weights"),
        (None, swap, "weights"),
        (lambda m: m.update({"qwen3.rope.freq_base": 20000.0}), None, "settings"),
        (lambda m: m.update({"qwen3.attention.layer_norm_rms_epsilon": 1e-5}), None, "settings"),
        (partial(less, "tokenizer.ggml.merges"), None, "tokenizer"),
        (lambda m: m.update({"tokenizer.ggml.pre": "gpt-2"}), None, "tokenizer"),
        (None, lambda t: t.pop("output_norm.weight"), "read"),
    ],
)
def test_a_fault_in_a_file_is_caught(
    source: Source, tmp_path: Path, metadata: Any, tensors: Any, caught_by: str
) -> None:
    changes = {"metadata": metadata, "tensors": tensors}
    given = {name: change for name, change in changes.items() if change is not None}
    checks = rewritten(source, tmp_path / "m.gguf", **given)
    assert failing(checks) == [caught_by]


@pytest.mark.torch
def test_products_of_q8_0_that_are_a_hundredth_off_are_caught(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scaled(text: str) -> str:
        right = "vf y = vf_load(acc + v * VL);"
        assert right in text
        return text.replace(right, "vf y = vf_load(acc + v * VL) * 1.01f;")

    # Rows as int16, which processors that take int8 would hide the fault behind.
    monkeypatch.setattr(Target, "of", staticmethod(lambda features: Target(byte_dots=False)))
    honest, path = engine_model.inference_program, tmp_path / "m.gguf"
    export_gguf(source, path, "Q8_0")
    assert failing(proof.prove_gguf(source, path, "Q8_0")) == []
    monkeypatch.setattr(engine_model, "inference_program", partial(honest, source_patch=scaled))
    checks = proof.prove_gguf(source, path, "Q8_0")
    assert "logits" in failing(checks)
    assert not {"settings", "weights", "tokenizer", "logits_transformers"} & set(failing(checks))


@pytest.mark.torch
def test_a_fault_that_reader_and_writer_share_is_caught_by_llama_cpp(
    source: Source, tmp_path: Path
) -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp is in the extra dev")
    family = source.model.family

    def swapped(config: Any) -> Any:
        names = {"ffn_gate": "ffn_up", "ffn_up": "ffn_gate"}
        for weight in family.weights(config):
            layer, _, rest = weight.gguf.rpartition(".ffn_")
            other = names.get("ffn_" + rest.removesuffix(".weight"))
            name = f"{layer}.{other}.weight" if layer and other else weight.gguf
            yield dataclasses.replace(weight, gguf=name)

    wrong = dataclasses.replace(family, weights=lambda config: tuple(swapped(config)))
    model = dataclasses.replace(source.model, family=wrong)
    checks = _with_model(dataclasses.replace(source, model=model), tmp_path / "m.gguf")
    assert "logits_llama_cpp" in failing(checks)
    assert not {"settings", "weights", "tokenizer", "logits"} & set(failing(checks))


def _with_model(source: Source, path: Path) -> list[Check]:
    """The proof of an export where the reader has the table of this source."""
    export_gguf(source, path, "F32")

    def opened(path: Path) -> Source:
        found = open_gguf(path)
        parameters = source.model.family.parameters(found.model.config, found.gguf, "gguf")
        return dataclasses.replace(found, model=source.model, parameters=parameters)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proof, "open_gguf", opened)
        return proof.prove_gguf(source, path, "F32")


def _edit(path: Path, change: Callable[[Any], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_a_fault_in_a_directory_is_caught(source: Source, tmp_path: Path) -> None:
    path = tmp_path / "hf"
    export_hf(source, path)
    config, tokenizer = path / "config.json", path / "tokenizer.json"
    weights = path / "model.safetensors"
    for file, change, caught_by in (
        (config, lambda d: d.update(rope_theta=20000.0), "settings"),
        (tokenizer, lambda d: d["model"]["merges"].pop(0), "tokenizer"),
        (weights, None, "weights"),
    ):
        kept = file.read_bytes()
        if change is None:
            file.write_bytes(kept[:-3] + bytes([kept[-3] ^ 1]) + kept[-2:])
        else:
            _edit(file, change)
        assert failing(proof.prove_hf(source, path)) == [caught_by]
        file.write_bytes(kept)


def test_an_export_that_is_not_the_model_is_not_kept(
    run: RunDir, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(source: Source, path: Path, wanted: Any) -> None:
        planned = gguf_tensors(source, wanted)
        flip("token_embd.weight", planned)
        write_gguf(path, gguf_metadata(source, wanted), planned)

    monkeypatch.setattr(verb, "export_gguf", wrong)
    out = tmp_path / "m.gguf"
    assert main(["export", str(run.path), "--to", "gguf", "-o", str(out)]) == 1
    assert not os.listdir(tmp_path)
    out.write_text("mine")
    assert main(["export", str(run.path), "--to", "gguf", "-o", str(out)]) == 2
    assert main(["export", str(run.path), "--to", "gguf", "-o", str(out), "--force"]) == 1
    assert out.read_text() == "mine"
    assert os.listdir(tmp_path) == ["m.gguf"]


EXPORT = "import sys; from lockstep.cli.main import main; sys.exit(main(['export', *sys.argv[1:]]))"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_export_that_is_ended_leaves_nothing(
    run: RunDir, tmp_path: Path, number: signal.Signals
) -> None:
    flags = ("--to", "gguf", "-o", str(tmp_path / "m.gguf"))
    command = [sys.executable, "-c", EXPORT, str(run.path), *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            ends = time.monotonic() + 120
            while not [*tmp_path.glob(".m.gguf.*/m.gguf")]:  # the model is there, and unproved
                assert process.poll() is None
                assert time.monotonic() < ends
                time.sleep(0.005)
            process.send_signal(number)
            _, said = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 128 + number, said
    assert "Traceback" not in said
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("target", ["gguf", "hf"])
def test_a_proof_that_does_not_fit_into_memory_is_not_begun(
    run: RunDir, source: Source, target: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    free = proof.proof_bytes(source.model) - 1
    monkeypatch.setattr(proof, "available_bytes", lambda: free)
    out = tmp_path / "out"
    assert main(["export", str(run.path), "--to", target, "-o", str(out)]) == 5
    assert "to prove the export" in capfd.readouterr().err
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("target", ["gguf", "hf", "c"])
def test_a_tokenizer_that_cannot_be_read_is_a_fault_of_the_model(
    target: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    facts = bpe_metadata(pre_tokenizer("gpt-2"), "gpt-9", vocab_size=300)
    path = str(write_model(tmp_path / "m.gguf", facts))
    assert main(["export", path, "--to", target, "-o", str(tmp_path / "out")]) == 4
    err = capfd.readouterr().err
    assert f"{path}, tokenizer.ggml.pre: expected one of" in err
    assert "writing" not in err
    assert os.listdir(tmp_path) == ["m.gguf"]


@pytest.mark.parametrize(("target", "kind"), [("gguf", "file"), ("hf", "directory")])
def test_what_would_not_be_replaced_is_said_before_anything_is_written(
    run: RunDir, target: str, kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    if kind == "file":
        out.mkdir()
    else:
        out.write_text("mine")
    assert main(["export", str(run.path), "--to", target, "-o", str(out), "--force"]) == 2
    err = capfd.readouterr().err
    assert f"{out}: expected a {kind}, got a" in err
    assert "writing" not in err
    assert os.listdir(tmp_path) == ["out"]


def test_a_type_that_a_format_does_not_have_is_refused(run: RunDir, tmp_path: Path) -> None:
    out = str(tmp_path / "hf")
    assert main(["export", str(run.path), "--to", "hf", "--type", "Q8_0", "-o", out]) == 2
    assert main(["export", str(run.path), "--to", "c", "--type", "F32", "-o", out]) == 2
    assert main(["export", str(tmp_path / "none"), "--to", "hf", "-o", out]) == 4
    assert not os.listdir(tmp_path)


@dataclasses.dataclass(frozen=True)
class _File:
    """The tensors of a file, as far as settings depend on them."""

    arrays: dict[str, np.ndarray]
    where: str = "test"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: array.shape for name, array in self.arrays.items()}

    @property
    def stored(self) -> dict[str, str]:
        return dict.fromkeys(self.arrays, "F32")

    def read(self, name: str) -> np.ndarray:
        return self.arrays[name]


# What GGUF has no key for.
UNSPOKEN = {
    ("llama", "tied, biased, scaled"): {"activation"},
    ("gemma3", "untied, biased, stretched"): {"activation", "query_scale"},
    ("qwen2", "untied, stretched"): {"scaling"},  # yarn with its borders not rounded
}


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        (f.name, v)
        for f in FAMILIES.values()
        if f.to_gguf
        for v in f.small_configs
        if v != "windowed"
    ],
)
def test_settings_as_gguf_metadata_read_back(name: str, variant: str) -> None:
    family = FAMILIES[name]
    config = family.small_configs[variant]
    arrays = {
        w.gguf: np.broadcast_to(np.float32(0), w.gguf_form.shape(w.shape))
        for w in family.weights(config)
    }
    assert family.to_gguf is not None
    metadata = family.to_gguf(config)
    found = family.from_gguf(metadata, _File(arrays | family.gguf_tensors(config)))
    found = family.in_hf_order(found)
    lost = {line.split()[0] for line in differing(config, found)}
    assert lost == UNSPOKEN.get((name, variant), set())


def test_what_gguf_cannot_say_is_refused_by_name(source: Source) -> None:
    model = dataclasses.replace(
        source.model, config=dataclasses.replace(source.model.config, activation="gelu_tanh")
    )
    with pytest.raises(UsageError, match="activation gelu_tanh"):
        gguf_metadata(dataclasses.replace(source, model=model), "F32")


def test_a_token_that_differs_is_a_fault_unless_it_is_a_tie() -> None:
    logits = np.array([[0.0, 1.0, 0.5], [3.0, 2.9999, 1.0]])
    truth = Truth(logits=logits, band=1e-5, own=1e-5, origin=1e-5, wide=1e-4)
    ours = [1, 0]
    assert greedy_check("g", "x", [1, 0], ours, truth, truth.own, "us").verdict == "pass"
    assert greedy_check("g", "x", [1, 1], ours, truth, truth.wide, "us").verdict == "pass"
    assert greedy_check("g", "x", [1, 1], ours, truth, truth.own, "us").verdict == "fail"
    assert greedy_check("g", "x", [1, 2], ours, truth, truth.wide, "us").verdict == "fail"
    assert greedy_check("g", "x", [1], ours, truth, truth.wide, "us").verdict == "fail"
    first = Truth(logits=logits[1:], band=1e-5, own=1e-5, origin=1e-5, wide=1e-4)
    assert greedy_check("g", "x", [1], [0], first, first.wide, "us").verdict == "pass"
    assert greedy_check("g", "x", [1], [0], first, first.own, "us").verdict == "fail"
    assert greedy_check("g", "x", [], [], first, first.wide, "us").verdict == "fail"
    for moved, verdict in ((5e-6, "pass"), (2e-5, "fail"), (np.nan, "fail")):
        answers = Answers(tokens=ours, logits=logits + moved)
        assert logits_check("l", "x", answers, truth, ours, truth.band).verdict == verdict


@pytest.mark.torch
def test_a_llama_cpp_that_does_not_end_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lockstep.oracle import llama_cpp

    monkeypatch.setattr(llama_cpp, "find_spec", lambda name: name)
    monkeypatch.setattr(llama_cpp, "SECONDS", 0.001)
    with pytest.raises(EnvironmentLacks, match="gave no answer about"):
        llama_cpp.ask_server(tmp_path / "m.gguf", 9, [])


def test_numbers_that_a_gguf_file_has_are_written_as_they_are(source: Source) -> None:
    facts = {
        "tokenizer.large": [1 << 40, -1],
        "tokenizer.flags": [True, False],
        "tokenizer.kinds": [1, 3],
        "tokenizer.none": [],
    }
    of_gguf = dataclasses.replace(source, gguf=cast(GGUFFile, object()), metadata=facts)
    written = gguf_metadata(of_gguf, "F32")
    assert {k: (written[k].dtype, written[k].tolist()) for k in facts} == {
        "tokenizer.large": (np.int64, [1 << 40, -1]),
        "tokenizer.flags": (np.bool_, [True, False]),
        "tokenizer.kinds": (np.int32, [1, 3]),
        "tokenizer.none": (np.int32, []),
    }


def test_rows_that_are_no_whole_blocks_are_halves() -> None:
    def stored(shape: tuple[int, ...], *, exact: bool = False) -> str:
        weight = Weight(id="w", shape=shape, hf="w", gguf="w", decay=True, gguf_exact=exact)
        return weight.written_as("gguf", "Q8_0")

    assert stored((64,)) == "F32"
    assert stored((3, 64)) == "Q8_0"
    assert stored((3, 48)) == "F16"
    assert stored((3, 64), exact=True) == "F32"


@pytest.mark.parametrize("pre", ["qwen2", "llama-bpe", "gpt-2", "qwen35"])
def test_a_gguf_tokenizer_as_tokenizer_json_and_back(tmp_path: Path, pre: str) -> None:
    metadata = bpe_metadata(pre_tokenizer(pre), pre)
    first = GGUFTokenizer.read(metadata)
    vocabulary = vocabulary_of(first)
    (tmp_path / "tokenizer.json").write_text(hf_tokenizer_document(vocabulary))
    names = {"bos_token": vocabulary.pieces[first.bos_id or 0], "add_bos_token": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names))
    second = HFTokenizer(tmp_path)
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    library.encode_special_tokens = True
    for text in nasty_texts():
        assert second.encode(text) == first.encode(text), text
        assert library.encode(text, add_special_tokens=False).ids == first.encode(text)
    again = vocabulary_of(second)
    assert (again.pieces, again.kinds, again.merges) == (
        list(vocabulary.pieces), vocabulary.kinds, list(vocabulary.merges),
    )  # fmt: skip
    # The two names of Llama's splitting are one in tokenizer.json.
    assert again.pre == pre


def test_unused_pieces_fill_the_rows_of_the_table(source: Source) -> None:
    vocabulary = vocabulary_of(GGUFTokenizer.read(bpe_metadata(pre_tokenizer("qwen2"), "qwen2")))
    n = len(vocabulary.pieces)
    more = padded(vocabulary, n + 3)
    assert list(more.pieces[n:]) == [f"[PAD{i}]" for i in range(n, n + 3)]
    assert set(more.kinds[n:]) == {5}
    with pytest.raises(UsageError, match="at most"):
        padded(vocabulary, n - 1)


def test_a_number_that_halves_cannot_hold_leaves_no_file(source: Source, tmp_path: Path) -> None:
    large = dict(source.parameters.arrays)  # type: ignore[attr-defined]
    large["embed.weight"] = large["embed.weight"] * np.float32(1e6)
    parameters = dataclasses.replace(source.parameters, arrays=large)  # type: ignore[type-var]
    with pytest.raises(InputError, match="range of F16"):
        export_gguf(dataclasses.replace(source, parameters=parameters), tmp_path / "m.gguf", "F16")
    assert not os.listdir(tmp_path)
