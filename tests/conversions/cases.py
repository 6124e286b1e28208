"""Every conversion that the ready claims are tried on, with the faults planted in its target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from conversions import c49k, fused, gguf_files, meta_llama, scanned, toy
from conversions.conversion import Conversion
from conversions.faults import LAYER_ORDER, ROPE_FAULTS, ROUNDED, WEIGHT_FAULTS, Fault

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
    "gemma2 from GGUF": Case(
        gguf_files.gguf_to_hf,
        "gemma2 to GGUF",
        {"head not tied": Fault(lambda t, s: t | {"lm_head.weight": t[s.embed][::-1].copy()})},
    ),
    "gemma3 to GGUF": Case(_gguf("gemma3", "F32", "F32")),
    "gemma3 from GGUF": Case(gguf_files.gguf_to_hf, "gemma3 to GGUF"),
    "gpt-neox to GGUF": Case(
        _gguf("gpt_neox", "F32", "F16"),
        faults={"qkv left per head": Fault(gguf_files.qkv_per_head, ("was not applied",))},
    ),
    "meta to HF": Case(meta_llama.meta_to_hf, faults=LLAMA_BF16),
    "HF to meta": Case(meta_llama.hf_to_meta, "meta to HF", ROPE_FAULTS),
    "phi3 apart": Case(fused.phi3_to_split, faults=BEYOND_SHAPE),
    "phi3 fused": Case(
        fused.split_to_phi3,
        "phi3 apart",
        {"halves reversed": Fault(fused.halves_reversed, ("halves|order=up_gate",))},
    ),
    "HF to megatron": Case(
        fused.hf_to_megatron,
        faults={
            "qkv one after the other": Fault(fused.qkv_one_after_the_other, ("by side|=concat",)),
            "halves reversed": Fault(fused.halves_reversed, ("halves|order=up_gate",)),
        },
    ),
    "megatron to HF": Case(fused.megatron_to_hf, "HF to megatron", BEYOND_SHAPE),
    "HF to maxtext": Case(scanned.qwen3_to_maxtext, faults=scanned.scan_faults(1)),
    "maxtext to HF": Case(scanned.back_to_hf, "HF to maxtext", BEYOND_SHAPE),
    "HF to flax scan": Case(scanned.llama_to_flax_scan, faults=scanned.FLAX_FAULTS),
    "flax scan to HF": Case(scanned.back_to_hf, "HF to flax scan", SWAPS),
    "c49k": Case(c49k.c49k, faults=c49k.C49K_FAULTS),
}


class Made:
    """The conversions that were asked for, each made once."""

    def __init__(self, root: Path) -> None:
        """Everything is written below `root`."""
        self.root = root
        self.made: dict[str, Conversion] = {}

    def __call__(self, name: str) -> Conversion:
        """The conversion of a case."""
        if name not in self.made:
            case, path = CASES[name], self.root / name.replace(" ", "-")
            path.mkdir()
            self.made[name] = case.make(self(case.forth), path) if case.forth else case.make(path)
        return self.made[name]
