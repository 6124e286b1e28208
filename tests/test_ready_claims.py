"""The ready claim files, on conversions that other people's code made, clean and with faults."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from conversions import c49k, fused, gguf_files, meta_llama, scanned, toy
from conversions.conversion import Conversion, different
from conversions.faults import LAYER_ORDER, ROPE_FAULTS, ROUNDED, WEIGHT_FAULTS, Fault
from conversions.harmless import HARMLESS

from lockstep.artifacts.verification import VALUE_EXACT, ClaimRow, Verification
from lockstep.verify import check
from lockstep.verify.claim_file import READY

Faults = Mapping[str, Fault]
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip
LLAMA = {**WEIGHT_FAULTS, **ROPE_FAULTS}
LLAMA_BF16 = {n: f for n, f in LLAMA.items() if n != "one leaf times 1.0001"}  # it rounds away
BEYOND_SHAPE = {
    name: WEIGHT_FAULTS[name]
    for name in ("gate and up swapped in one layer", "two layers exchanged", "+0 became -0")
}

SWAPS = dict(list(BEYOND_SHAPE.items())[:2])


@dataclass(frozen=True)
class Case:
    """How a conversion is made, from another one where it is the way back, and its faults."""

    make: Callable[..., Conversion]
    forth: str = ""
    faults: Faults = field(default_factory=dict)


def _gguf(kind: str, stored: str, outtype: str, **options: object) -> Callable[..., Conversion]:
    return partial(gguf_files.hf_to_gguf, kind, stored=stored, outtype=outtype, **options)


CASES: dict[str, Case] = {
    "toy": Case(toy.toy, faults=toy.FAULTS),
    "llama F32 to GGUF F32": Case(
        _gguf("llama", "F32", "F32", n_layers=12),
        faults={**SWAPS, **ROPE_FAULTS, **ROUNDED, **LAYER_ORDER},
    ),
    "llama BF16 to GGUF F16": Case(
        _gguf("llama", "BF16", "F16", attention_bias=True), faults=BEYOND_SHAPE
    ),
    "llama F16 to GGUF BF16": Case(_gguf("llama", "F16", "BF16"), faults=BEYOND_SHAPE),
    "llama BF16 to GGUF BF16": Case(_gguf("llama", "BF16", "BF16", rope_parameters=LLAMA3)),
    "llama from GGUF BF16": Case(gguf_files.gguf_to_hf, "llama BF16 to GGUF BF16"),
    "llama from GGUF": Case(gguf_files.gguf_to_hf, "llama F32 to GGUF F32", ROPE_FAULTS),
    "llama from GGUF F16": Case(gguf_files.gguf_to_hf, "llama BF16 to GGUF F16"),
    "qwen2 to GGUF": Case(_gguf("qwen2", "BF16", "BF16"), faults=BEYOND_SHAPE),
    "qwen2 from GGUF": Case(gguf_files.gguf_to_hf, "qwen2 to GGUF"),
    "qwen3 to GGUF": Case(
        _gguf("qwen3", "BF16", "F32"), faults={"head not tied": Fault(gguf_files.untied)}
    ),
    "qwen3 from GGUF": Case(gguf_files.gguf_to_hf, "qwen3 to GGUF", BEYOND_SHAPE),
    "gemma2 to GGUF": Case(
        _gguf("gemma2", "BF16", "F16"),
        faults={
            **BEYOND_SHAPE,
            "norms without + 1": Fault(gguf_files.unshifted_norms, ("add_one",)),
        },
    ),
    "gemma2 from GGUF": Case(gguf_files.gguf_to_hf, "gemma2 to GGUF"),
    "gemma3 to GGUF": Case(_gguf("gemma3", "F32", "F32")),
    "gemma3 from GGUF": Case(gguf_files.gguf_to_hf, "gemma3 to GGUF"),
    "gpt-neox to GGUF": Case(
        _gguf("gpt_neox", "F32", "F16"),
        faults={"qkv left per head": Fault(gguf_files.qkv_per_head, ("not transformed",))},
    ),
    "meta to HF": Case(meta_llama.meta_to_hf, faults=LLAMA_BF16),
    "HF to meta": Case(meta_llama.hf_to_meta, "meta to HF", ROPE_FAULTS),
    "phi3 apart": Case(fused.phi3_to_split, faults=BEYOND_SHAPE),
    "phi3 fused": Case(
        fused.split_to_phi3,
        "phi3 apart",
        {"halves reversed": Fault(fused.halves_reversed, ("halves",))},
    ),
    "HF to megatron": Case(
        fused.hf_to_megatron,
        faults={
            "qkv one after the other": Fault(fused.qkv_one_after_the_other, ("side by side",)),
            "halves reversed": Fault(fused.halves_reversed, ("halves",)),
        },
    ),
    "megatron to HF": Case(fused.megatron_to_hf, "HF to megatron", BEYOND_SHAPE),
    "HF to maxtext": Case(scanned.qwen3_to_maxtext, faults=scanned.scan_faults(1)),
    "maxtext to HF": Case(scanned.back_to_hf, "HF to maxtext", BEYOND_SHAPE),
    "HF to flax scan": Case(scanned.llama_to_flax_scan, faults=scanned.FLAX_FAULTS),
    "flax scan to HF": Case(scanned.back_to_hf, "HF to flax scan", SWAPS),
    "c49k": Case(c49k.c49k, faults=c49k.C49K_FAULTS),
}
PLANTED = [(case, fault) for case, made in CASES.items() for fault in made.faults]


@pytest.fixture(scope="session")
def conversions(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Conversion]:
    """Makes each conversion once."""
    root = tmp_path_factory.mktemp("conversions")
    made: dict[str, Conversion] = {}

    def get(name: str) -> Conversion:
        if name not in made:
            case, path = CASES[name], root / name.replace(" ", "-")
            path.mkdir()
            made[name] = case.make(get(case.forth), path) if case.forth else case.make(path)
        return made[name]

    return get


def verified(conversion: Conversion, target: Path) -> Verification:
    claims = conversion.claims
    return check(conversion.source, target, claims if "/" in claims else f"ready:{claims}", jobs=1)


@pytest.mark.torch
@pytest.mark.parametrize("name", CASES)
def test_a_clean_conversion_is_value_exact(
    name: str, conversions: Callable[[str], Conversion]
) -> None:
    report = verified(conversions(name), conversions(name).target)
    assert report.problems == ()
    assert report.value_exact, failed(report)
    assert report.claims
    assert {row.verdict for row in report.claims} <= set(VALUE_EXACT)
    for side in (report.source, report.target):
        assert all(leaf.n_claimed + leaf.n_excused == leaf.n_elements for leaf in side.leaves)
    excused = [leaf.name for side in (report.source, report.target) for leaf in side.leaves
               if leaf.n_excused]  # fmt: skip
    assert set(excused) <= {"rope.freqs", "rope_freqs.weight", "step"}


@pytest.mark.torch
@pytest.mark.parametrize(("name", "fault"), PLANTED, ids=[": ".join(p) for p in PLANTED])
def test_a_planted_fault_fails_where_it_is(
    name: str, fault: str, conversions: Callable[[str], Conversion], tmp_path: Path
) -> None:
    conversion, planted = conversions(name), CASES[name].faults[fault]
    target = conversion.planted(planted, tmp_path / conversion.target.name)
    report = verified(conversion, target)
    assert not report.value_exact
    assert report.verdict == "FAIL"
    changed = different(planted(conversion.tensors, conversion.scheme), conversion.tensors)
    extra = {problem.where.rpartition(" ")[2] for problem in report.problems}
    assert set(failed(report)) | extra == set(changed)
    rows = [row for row in report.claims if row.verdict == "FAIL"]
    assert all(row.difference is not None for row in rows)
    for words in planted.says:
        assert any(re.search(words, said(row)) for row in rows), [said(row) for row in rows]


@pytest.mark.torch
@pytest.mark.parametrize("name", HARMLESS)
def test_what_changes_no_value_passes(name: str, tmp_path: Path) -> None:
    conversion = HARMLESS[name](tmp_path)
    report = verified(conversion, conversion.target)
    assert report.problems == ()
    assert report.value_exact, failed(report)


def failed(report: Verification) -> list[str]:
    return [row.target for row in report.claims if row.verdict not in VALUE_EXACT]


def said(row: ClaimRow) -> str:
    """What the report says of a leaf that fails: the diagnosis, else the kinds of difference."""
    if row.diagnosis is not None:
        return f"{row.diagnosis.text} {' '.join(row.diagnosis.suspects)}"
    return row.why


@pytest.mark.torch
def test_every_ready_file_has_a_conversion_that_it_was_tried_on(
    conversions: Callable[[str], Conversion],
) -> None:
    tried = {conversions(name).claims for name in CASES}
    ready = {path.stem for path in READY.glob("*.toml")}
    assert ready
    assert ready == tried - {str(toy.CLAIMS)}


def test_a_ready_file_says_what_it_is_and_against_what_it_was_checked() -> None:
    for path in READY.glob("*.toml"):
        head = path.read_text().partition("schema =")[0]
        assert head.startswith("# "), path.name
        assert "->" in head or "Orbax to Orbax" in head, path.name
        assert "Checked against" in head, path.name
