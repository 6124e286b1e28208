"""One peer of the training benchmark: PyTorch, in a process of its own.

python worker_torch.py SHAPE BATCH THREADS PARAMETERS.npz hand|hand-compiled|transformers|transformers-compiled
"""  # noqa: E501

from __future__ import annotations

import sys

import numpy as np
import torch
from protocol import LEARNING_RATE, MAX_NORM, THETA, batches, serve
from shapes import SHAPES, Shape


def transformers_model(shape: Shape, parameters: dict[str, np.ndarray]) -> torch.nn.Module:
    """transformers' own class with these weights."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=shape.vocab, hidden_size=shape.width, intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads, head_dim=shape.width // shape.heads,
        max_position_embeddings=shape.tokens, rope_theta=THETA, rms_norm_eps=1e-6,
        tie_word_embeddings=True, use_cache=False,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    ours = {
        "embed": "model.embed_tokens", "norm": "model.norm", "norm1": "input_layernorm",
        "norm2": "post_attention_layernorm", "attn": "self_attn", "ffn": "mlp", "q": "q_proj",
        "k": "k_proj", "v": "v_proj", "o": "o_proj", "gate": "gate_proj", "up": "up_proj",
        "down": "down_proj", "layers": "model.layers",
    }  # fmt: skip
    state = {
        ".".join(ours.get(part, part) for part in id.split(".")): torch.from_numpy(array.copy())
        for id, array in parameters.items()
    }
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    return model.train()


def main() -> None:
    """Builds the variant that was asked for and serves steps."""
    shape, batch, threads = SHAPES[sys.argv[1]], int(sys.argv[2]), int(sys.argv[3])
    variant = sys.argv[5]
    torch.set_num_threads(threads)
    with np.load(sys.argv[4]) as archive:
        parameters = dict(archive)
    if variant.startswith("hand"):
        from torch_model import Model, load

        model: torch.nn.Module = Model(shape, THETA)
        load(model, parameters)
    else:
        model = transformers_model(shape, parameters)
    del parameters
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, weight_decay=0.01, fused=True
    )
    run = torch.compile(model) if variant.endswith("compiled") else model
    data = [tuple(torch.from_numpy(a).long() for a in pair) for pair in batches(shape, batch)]

    def step(i: int) -> float:
        tokens, targets = data[i]
        if variant.startswith("hand"):
            loss = run(tokens, targets)
        else:
            logits = run(input_ids=tokens, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    serve(step)


if __name__ == "__main__":
    main()
