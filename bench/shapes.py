"""The models that the training benchmark runs: the four shapes of the peers' figures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One model and the length of its sequences; `bars` are the asked ratios by batch size."""

    name: str
    layers: int
    width: int
    ffn: int
    heads: int
    kv_heads: int
    tokens: int
    vocab: int
    bars: dict[int, float]

    def parameters_in_products(self) -> int:
        """Weights that multiply every token: linears and head, not the embedding's look-up."""
        head_width = self.width // self.heads
        attention = 2 * self.width * self.width + 2 * self.width * self.kv_heads * head_width
        return self.layers * (attention + 3 * self.width * self.ffn) + self.vocab * self.width

    def flop_per_token(self) -> float:
        """Floating-point operations of forward and backward, attention's causal half included."""
        attention = 6 * self.layers * self.width * self.tokens
        return 6.0 * self.parameters_in_products() + attention


SHAPES = {
    shape.name: shape
    for shape in (
        Shape(name="a", layers=16, width=128, ffn=512, heads=8, kv_heads=4, tokens=512, vocab=1024,
              bars={1: 1.8, 8: 1.4}),
        Shape(name="b", layers=24, width=64, ffn=128, heads=8, kv_heads=4, tokens=32, vocab=320,
              bars={1: 5.0, 8: 3.0}),
        Shape(name="c", layers=4, width=96, ffn=192, heads=8, kv_heads=4, tokens=64, vocab=2048,
              bars={1: 3.0, 8: 1.4}),
        Shape(name="d", layers=12, width=768, ffn=2048, heads=12, kv_heads=12, tokens=1024,
              vocab=50257, bars={1: 1.1}),
    )
}  # fmt: skip
