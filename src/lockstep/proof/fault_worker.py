"""Plants one fault after another, in a process of its own: a planted fault may well crash it.

A job is one line of JSON on stdin. Every line on stdout is one event: `at` before whatever may not
come back, then `redrawn` or `fault`, and at the end `done`, or else `failed` or `lacks`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from random import Random
from time import perf_counter
from typing import Any

from lockstep.build import Built, Model, OptimizerSpec
from lockstep.errors import EnvironmentLacks, GateError, LockstepError
from lockstep.families import FAMILIES
from lockstep.ir import Array
from lockstep.native import Compiler, Program, compile_library
from lockstep.native.compiler import find_compiler
from lockstep.proof.compare import first_guilty
from lockstep.proof.misorder import KINDS, misorder
from lockstep.proof.mutate import Fault, plant
from lockstep.proof.referee import Refereed, referee
from lockstep.proof.subject import Subject, drawn_subject

REDRAWS = 30
WIDE = "llama, untied, wide"  # slow, and there for the kernels of large matrices
# Compiling takes the time here, and no bit depends on it; a fault may leave variables unused.
QUICK = ("-O0", "-Wno-error")


@dataclass(frozen=True, kw_only=True)
class Healthy:
    """A program without a fault, and what its nodes leave behind."""

    subject: Subject
    built: Built
    refereed: Refereed
    states: Mapping[str, Array]


def subjects() -> dict[str, Subject]:
    """Small programs that have every op of training between them, by name."""
    qwen3, llama = FAMILIES["qwen3"], FAMILIES["llama"]
    biased = llama.variants["tied, biased, scaled"]
    wide = replace(
        llama.TINY, layers=1, width=512, ffn=512, heads=8, kv_heads=8, head_dim=64, vocab=48
    )
    adamw = OptimizerSpec(weight_decay=0.1)
    return {
        "qwen3, tied": drawn_subject(Model(qwen3, replace(qwen3.TINY, layers=1)), adamw),
        "qwen3, untied, biased, sgd": drawn_subject(
            Model(qwen3, qwen3.variants["untied, biased"]),
            OptimizerSpec(kind="sgd", weight_decay=0.1),
        ),
        "llama, tied, biased, gelu": drawn_subject(Model(llama, replace(biased, layers=1)), adamw),
        WIDE: drawn_subject(Model(llama, wide), adamw, batch=3, tokens=32),
    }


@cache
def quick_compiler() -> Compiler:
    """The machine's compiler without optimisation."""
    return replace(find_compiler(), extra=QUICK)


@cache
def healthy(name: str) -> Healthy:
    """The program of a subject, seen to be without fault."""
    subject = subjects()[name]
    built = subject.build(compiler=quick_compiler(), threads=1)
    refereed = referee(built, subject)
    guilty, states = first_guilty(built, subject, refereed)
    if guilty is not None:
        raise GateError(
            f"{name}: expected a program without fault to plant one into, {guilty} is at fault",
            hint="see what `lockstep compare` says of a run",
        )
    return Healthy(subject=subject, built=built, refereed=refereed, states=states)


def say(**event: Any) -> None:
    """One event for the parent."""
    print(json.dumps(event), flush=True)


def draw(built: Built, op: str, phase: str, random: Random) -> Fault:
    """A fault in a node of this op and phase, or between nodes if `op` is a kind of that."""
    if op in KINDS:
        return misorder(built, op, random)
    nodes = [n for n in built.program.manifest.nodes if (n.op, n.section) == (op, phase)]
    return plant(built, random.choice(nodes), random)


def work(job: Mapping[str, Any]) -> None:
    """Draws faults until one compiles and changes a bit, and says whom the comparison names."""
    say(at="a healthy program")
    base = healthy(job["program"])
    random = Random(job["seed"])
    for _ in range(REDRAWS):
        fault = draw(base.built, job["op"], job["phase"], random)
        began = perf_counter()
        say(at="the compiler")
        try:
            library = compile_library(fault.source, compiler=quick_compiler())
        except EnvironmentLacks:
            say(redrawn="uncompilable")
            continue
        say(fault={k: getattr(fault, k) for k in ("nodes", "op", "phase", "kind", "what")})
        named, inert, why = judge(base, library)
        if inert:
            say(redrawn="inert")
            continue
        say(done={"named": named, "why": why, "seconds": perf_counter() - began})
        return
    say(done=None)


def judge(base: Healthy, library: Any) -> tuple[str, bool, str]:
    """The node that is named, whether nothing changed at all, and how it was seen."""
    program = Program(library, base.built.program.manifest, threads=1)
    built = replace(base.built, program=program, library=library)
    where = ["walk"]

    def progress(text: str) -> None:
        if text.startswith("entry "):
            where[0] = text
        say(at=text)

    guilty, states = first_guilty(built, base.subject, base.refereed, progress=progress)
    if guilty is not None:
        return guilty, False, "alone" if where[0] == "walk" else where[0]
    changed = [id for id, array in states.items() if array.tobytes() != base.states[id].tobytes()]
    return "", not changed, f"changed within tolerance: {', '.join(changed[:3])}"


def main() -> None:
    """Answers jobs until stdin ends."""
    for line in sys.stdin:
        try:
            work(json.loads(line))
        except EnvironmentLacks as error:
            say(lacks=error.message, hint=error.hint)
        except LockstepError as error:
            say(failed=error.message)


if __name__ == "__main__":
    main()
