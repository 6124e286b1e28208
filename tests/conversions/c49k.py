"""The migration of the seed at small size: keys renamed, singletons squeezed, trees re-nested.

An old train state holds the components of three sites as flat V and U with a leading axis of 1, a
causal-importance function, sources, and the optimizer states of all three; the new one holds
`components.vu[site][0|1]` in two dimensions and the sources under the key of their term. gate and
up have equal shapes, so that nothing but their values tells them apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from conversions.conversion import Array, Conversion, Scheme, Tensors
from conversions.faults import Fault, exchange
from conversions.trees import flat, restore_orbax, save_orbax, write_orbax

SITES = {letter: f"layers.18.mlp.{name}_proj" for letter, name in
         (("g", "gate"), ("u", "up"), ("d", "down"))}  # fmt: skip
TERM = "PersistentPGDReconLoss"
_WIDTH, _HIDDEN, _C, _N_BLOCKS = 12, 16, 20, 2
_NO_SCHEME = Scheme(
    embed="", attn_norm="", ffn_norm="", q="", k="", v="", o="", gate="", up="", layer="",
    n_layers=0, n_heads=0, n_kv_heads=0,
)  # fmt: skip


def c49k(root: Path) -> Conversion:
    """Trains the old state for some steps, saves it, migrates it."""
    source = save_orbax(_old_state(), root / "old" / "175000" / "default")
    tensors = flat(migrated(restore_orbax(source)))
    target = write_orbax(tensors, root / "new" / "175000" / "default")
    return Conversion("c49k", source, target, tensors, write_orbax, _NO_SCHEME)


def migrated(old: dict[str, Any]) -> dict[str, Any]:
    """The new tree: every old leaf under its new key."""
    optimizer = old["components_opt_state"][1]
    adam = dict(optimizer[0]) | {m: _vu(optimizer[0][m]) for m in ("mu", "nu")}
    sources = {m: old["sources_adam_state"][m] for m in ("m", "v")}
    sources["step_count"] = old["sources_adam_state"]["step_count"]
    return {
        **{key: old[key] for key in ("ci_fn", "ci_fn_opt_state", "step")},
        "components": _vu(old["components"]),
        "components_opt_state": [None, [adam, None, optimizer[2]]],
        "sources": {TERM: old["sources"]},
        "sources_opt_state": {TERM: sources},
    }


def _vu(old: dict[str, Any]) -> dict[str, Any]:
    return {
        "vu": {
            site: [np.squeeze(np.asarray(old[part + letter]), 0) for part in "VU"]
            for letter, site in SITES.items()
        }
    }


def _old_state() -> dict[str, Any]:
    import optax

    rng = np.random.default_rng(49)
    components, ci_fn = _components(rng), _ci_fn(rng)
    schedule = optax.cosine_decay_schedule(1e-3, 200)
    sources = {site: rng.random((2, _C), np.float32) for site in SITES.values()}
    clipped = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))
    return {
        "components": components,
        "components_opt_state": _trained(clipped, components, rng),
        "ci_fn": ci_fn,
        "ci_fn_opt_state": _trained(optax.adamw(schedule), ci_fn, rng),
        "sources": sources,
        "sources_adam_state": {
            "m": {site: _drawn(rng, *a.shape) for site, a in sources.items()},
            "v": {site: _drawn(rng, *a.shape) ** 2 for site, a in sources.items()},
            "step_count": np.array(175000, np.int32),
        },
        "step": np.array(175000, np.int32),
    }


def _components(rng: np.random.Generator) -> Tensors:
    sizes = {"g": (_WIDTH, _HIDDEN), "u": (_WIDTH, _HIDDEN), "d": (_HIDDEN, _WIDTH)}
    found = {}
    for letter, (n_in, n_out) in sizes.items():
        found[f"V{letter}"] = _drawn(rng, 1, n_in, _C)
        found[f"U{letter}"] = _drawn(rng, 1, _C, n_out)
    return found


def _ci_fn(rng: np.random.Generator) -> dict[str, Any]:
    square = {name: _drawn(rng, 8, 8) for name in ("wq", "wk", "wv", "wo")}
    blocks = [
        {name: a + np.float32(0.01 * i) for name, a in square.items()}
        | {"w1": _drawn(rng, 8, 24), "b1": _drawn(rng, 24)}
        | {"w2": _drawn(rng, 24, 8), "b2": _drawn(rng, 8)}
        for i in range(_N_BLOCKS)
    ]
    ends = {"in_proj_w": _drawn(rng, _WIDTH, 8), "in_proj_b": _drawn(rng, 8)}
    ends |= {"out_w": _drawn(rng, 8, _C), "out_b": np.zeros(_C, np.float32)}
    return {"blocks": blocks, **ends, "inv_freq": _drawn(rng, 4)}


def _trained(optimizer: Any, parameters: Any, rng: np.random.Generator) -> Any:
    """The state of an optimizer after three steps on drawn gradients."""
    import jax

    state = jax.jit(optimizer.init)(parameters)
    update = jax.jit(optimizer.update)
    for _ in range(3):
        gradients = jax.tree.map(lambda p: _drawn(rng, *p.shape) * np.float32(1e-3), parameters)
        _, state = update(gradients, state, parameters)
    return state


def _drawn(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape, np.float32)


# --- faults


def _between(group: str, a: str, b: str) -> Any:
    """Exchanges every leaf of a group whose path holds `a` with the one that holds `b`."""

    def plant(t: Tensors, s: Scheme) -> Tensors:
        for name in [n for n in t if n.startswith(group) and a in n]:
            exchange(t, name, name.replace(a, b))
        return t

    return plant


def _changed(leaf: str) -> Any:
    def plant(t: Tensors, s: Scheme) -> Tensors:
        return t | {leaf: t[leaf] + t[leaf].dtype.type(1)}

    return plant


def _not_transposed(t: Tensors, s: Scheme) -> Tensors:
    name = "ci_fn_opt_state/[0]/mu/blocks/[0]/wq"
    return t | {name: np.ascontiguousarray(t[name].T)}


def _zero_sign(t: Tensors, s: Scheme) -> Tensors:
    return t | {ZEROS: -t[ZEROS]}


ZEROS = "ci_fn/out_b"  # a bias that is still zero
_ADAM = "components_opt_state/[1]/[0]/"
C49K_FAULTS: dict[str, Fault] = {
    "gate and up swapped in the components": Fault(
        _between("components/", "gate_proj", "up_proj"), ("components/V[gu]|components/U[gu]",)
    ),
    "V of gate and V of up swapped": Fault(
        lambda t, s: exchange(
            t, f"components/vu/{SITES['g']}/[0]", f"components/vu/{SITES['u']}/[0]"
        ),
        ("components/V[gu]",),
    ),
    "moments of gate and up swapped, parameters not": Fault(
        _between(_ADAM, "gate_proj", "up_proj"), ("[mn]u/[VU][gu]",)
    ),
    "mu and nu of the components swapped": Fault(_between(_ADAM, "/mu/", "/nu/"), ("[mn]u/",)),
    "nu of gate and up swapped": Fault(
        _between(_ADAM + "nu/", "gate_proj", "up_proj"), ("nu/[VU][gu]",)
    ),
    "m and v of the sources swapped": Fault(
        _between("sources_opt_state/", "/m/", "/v/"), ("sources_adam_state/[mv]/",)
    ),
    "wq and wk swapped in one block": Fault(
        _between("ci_fn/blocks/[1]", "wq", "wk"), ("ci_fn/blocks/.1./w[qk]",)
    ),
    "a square moment transposed, its parameter not": Fault(_not_transposed, ("transpose",)),
    "blocks exchanged": Fault(_between("ci_fn/", "[0]", "[1]"), ("blocks",)),
    "+0 became -0": Fault(_zero_sign, ("-0.0|sign|negat",)),
    "step changed": Fault(_changed("step")),
    "count of the schedule changed": Fault(_changed("components_opt_state/[1]/[2]/count")),
}
