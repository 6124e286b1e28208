"""The peer, written by hand: the same qwen3 model as a good user of PyTorch would write it."""

from __future__ import annotations

import numpy as np
import torch
from shapes import Shape
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, scaled_dot_product_attention, silu


def rotate(x_BHTE: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
    """Half-split rotary embedding."""
    a, b = x_BHTE.chunk(2, dim=-1)
    return x_BHTE * cos_TE + torch.cat((-b, a), dim=-1) * sin_TE


class Block(nn.Module):
    """One decoder layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.eps = shape.heads, shape.kv_heads, 1e-6
        self.head_width = shape.width // shape.heads
        kv_width = self.kv_heads * self.head_width
        self.norm1 = nn.RMSNorm(shape.width, eps=self.eps)
        self.q = nn.Linear(shape.width, shape.width, bias=False)
        self.k = nn.Linear(shape.width, kv_width, bias=False)
        self.v = nn.Linear(shape.width, kv_width, bias=False)
        self.o = nn.Linear(shape.width, shape.width, bias=False)
        self.q_norm = nn.RMSNorm(self.head_width, eps=self.eps)
        self.k_norm = nn.RMSNorm(self.head_width, eps=self.eps)
        self.norm2 = nn.RMSNorm(shape.width, eps=self.eps)
        self.gate = nn.Linear(shape.width, shape.ffn, bias=False)
        self.up = nn.Linear(shape.width, shape.ffn, bias=False)
        self.down = nn.Linear(shape.ffn, shape.width, bias=False)

    def forward(self, x_BTD: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
        B, T, D = x_BTD.shape
        h = self.norm1(x_BTD)
        q = self.q_norm(self.q(h).view(B, T, self.heads, self.head_width)).transpose(1, 2)
        k = self.k_norm(self.k(h).view(B, T, self.kv_heads, self.head_width)).transpose(1, 2)
        v = self.v(h).view(B, T, self.kv_heads, self.head_width).transpose(1, 2)
        q, k = rotate(q, cos_TE, sin_TE), rotate(k, cos_TE, sin_TE)
        o = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x_BTD = x_BTD + self.o(o.transpose(1, 2).reshape(B, T, D))
        h = self.norm2(x_BTD)
        return x_BTD + self.down(silu(self.gate(h)) * self.up(h))


class Model(nn.Module):
    """Embedding, layers, norm and a head tied to the embedding; returns the mean loss."""

    def __init__(self, shape: Shape, theta: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(shape.vocab, shape.width)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width, eps=1e-6)
        head_width = shape.width // shape.heads
        frequency = 1.0 / theta ** (torch.arange(0, head_width, 2) / head_width)
        angle = torch.outer(torch.arange(shape.tokens), frequency).repeat(1, 2)
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        x = self.embed(tokens_BT)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        logits = linear(self.norm(x), self.embed.weight)
        return cross_entropy(logits.view(-1, logits.shape[-1]), targets_BT.reshape(-1))


def load(model: Model, parameters: dict[str, np.ndarray]) -> None:
    """Puts Lockstep's parameters into the module, name by name."""
    names = {id.replace(".attn.", ".").replace(".ffn.", "."): id for id in parameters}
    state = {name: torch.from_numpy(parameters[id].copy()) for name, id in names.items()}
    state |= {"cos": model.cos, "sin": model.sin}
    model.load_state_dict(state)
