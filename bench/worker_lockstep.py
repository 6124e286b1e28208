"""Our side of the training benchmark, in a process of its own.

python worker_lockstep.py SHAPE BATCH THREADS PARAMETERS.npz
"""

from __future__ import annotations

import sys

import numpy as np
from protocol import LEARNING_RATE, MAX_NORM, THETA, batches, serve
from shapes import SHAPES, Shape

from lockstep.build import training_program
from lockstep.engine.trainer import Microbatch, TrainingSession, sequences_per_call
from lockstep.families import family_named
from lockstep.passes import OptimizerSpec


def config(shape: Shape) -> object:
    """The shape as a qwen3 configuration."""
    return family_named("qwen3").from_hf(
        {
            "model_type": "qwen3", "vocab_size": shape.vocab, "hidden_size": shape.width,
            "intermediate_size": shape.ffn, "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads,
            "head_dim": shape.width // shape.heads, "max_position_embeddings": shape.tokens,
            "rope_theta": THETA, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
            "hidden_act": "silu",
        }
    )  # fmt: skip


def main() -> None:
    """Builds the program that was asked for and serves steps."""
    shape, batch, threads = SHAPES[sys.argv[1]], int(sys.argv[2]), int(sys.argv[3])
    optimizer = OptimizerSpec(kind="adamw", weight_decay=0.01)
    per_call = sequences_per_call(batch, shape.tokens)
    program = training_program(
        family_named("qwen3"),
        config(shape),
        batch=per_call,
        tokens=shape.tokens,
        optimizer=optimizer,
        threads=threads,
    ).program
    session = TrainingSession(program, batch=per_call, tokens=shape.tokens)
    with np.load(sys.argv[4]) as archive:
        session.begin({id: archive[id] for id in archive.files})
    data = [
        [Microbatch(*(a[i : i + per_call] for a in pair)) for i in range(0, batch, per_call)]
        for pair in batches(shape, batch)
    ]

    def step(i: int) -> float:
        return session.step(data[i], lr=LEARNING_RATE, max_grad_norm=MAX_NORM).loss

    serve(step)


if __name__ == "__main__":
    main()
