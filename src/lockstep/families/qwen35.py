"""Qwen3.5: three layers of gated delta rule, then one of gated attention, over and over.

A row of `delta.qkv` passes a causal convolution, then the delta rule; what comes out is normed head
by head and gated. Attention turns only a part of each head by its position, and gates what it
makes. Positions of text are the same in all sections of M-RoPE, which makes it plain rope.
Source: transformers modeling_qwen3_5; arXiv:2412.06464.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from lockstep.families.decoder import Decoder
from lockstep.families.delta_forms import Logarithm, Taps, ValueHeads
from lockstep.families.family import Family
from lockstep.families.form import AS_IS, Form, LessOne
from lockstep.families.qwen35_config import (
    Config,
    from_gguf,
    from_hf,
    in_hf_order,
    own_tensors,
    to_gguf,
    to_hf,
)
from lockstep.families.weight import Forms, Parts, Scheme, Table, Weight
from lockstep.ir import Value
from lockstep.ops import OPS
from lockstep.ops.gated_delta import COLUMNS, blocks

DELTA_EPS = 1e-6  # of the lengths of q and k in the delta rule; no config holds it

TINY = Config(
    vocab=101, width=48, ffn=80, layers=4, heads=6, kv_heads=2, head_dim=12, context=40, rotary=6,
    key_heads=3, key_width=10, value_heads=3, value_width=14,
)  # fmt: skip

VARIANTS = {
    "untied, biased, value heads in groups": Config(
        vocab=67, width=40, ffn=56, layers=2, heads=4, kv_heads=4, head_dim=8, context=33, eps=1e-5,
        theta=1e6, tied=False, attention_bias=True, rotary=8, interval=2, taps=3,
        key_heads=2, key_width=9, value_heads=6, value_width=35,
    ),
}  # fmt: skip


def weights(config: Config) -> tuple[Weight, ...]:
    """The weight table, in the order of the parameters."""
    c, table = config, Table()
    table.linear("embed", (c.vocab, c.width), "model.embed_tokens", "token_embd")
    for i in range(c.layers):
        t = table.under(f"layers.{i}", f"model.layers.{i}", f"blk.{i}")
        t.gain("norm1", c.width, "input_layernorm", "attn_norm", LessOne())
        if c.is_attention(i):
            _attention_weights(c, t)
        else:
            _delta_weights(c, t)
        t.gain("norm2", c.width, "post_attention_layernorm", "post_attention_norm", LessOne())
        t.linear("ffn.gate", (c.ffn, c.width), "mlp.gate_proj", "ffn_gate")
        t.linear("ffn.up", (c.ffn, c.width), "mlp.up_proj", "ffn_up")
        t.linear("ffn.down", (c.width, c.ffn), "mlp.down_proj", "ffn_down")
    table.gain("norm", c.width, "model.norm", "output_norm", LessOne())
    if not c.tied:
        table.linear("head", (c.vocab, c.width), "lm_head", "output")
    return tuple(table.weights)


def _attention_weights(c: Config, t: Table) -> None:
    """`attn.q` makes each head's query and its gate, one after the other."""
    q, kv, bias = (c.q_width, c.width), (c.kv_width, c.width), c.attention_bias
    halves = [f"{name} of head {i}" for i in range(c.heads) for name in ("query", "gate")]
    t.linear(
        "attn.q", (2 * c.q_width, c.width), "self_attn.q_proj", "attn_q", bias=bias,
        parts=_parts(halves, [c.head_dim] * len(halves)),
    )  # fmt: skip
    t.linear("attn.k", kv, "self_attn.k_proj", "attn_k", bias=bias)
    t.linear("attn.v", kv, "self_attn.v_proj", "attn_v", bias=bias)
    t.gain("attn.q_norm", c.head_dim, "self_attn.q_norm", "attn_q_norm", LessOne())
    t.gain("attn.k_norm", c.head_dim, "self_attn.k_norm", "attn_k_norm", LessOne())
    t.linear("attn.o", q[::-1], "self_attn.o_proj", "attn_output", bias=bias)


def _delta_weights(c: Config, t: Table) -> None:
    """The rate of decay is held as its logarithm, which is what is trained."""

    def forms(width: int, hf: Form = AS_IS, gguf: Form = AS_IS, **place: int) -> Forms:
        return {
            "hf_form": _value_heads(c, "hf", width, hf, **place),
            "gguf_form": _value_heads(c, "gguf", width, gguf, **place),
        }

    values, first = (c.values_width, c.width), 2 * c.keys_width
    mixed = forms(c.value_width, first=first)
    parts = _parts(("q", "k", "v"), (c.keys_width, c.keys_width, c.values_width))
    t.linear(
        "delta.qkv", (c.mixed_width, c.width), "linear_attn.in_proj_qkv", "attn_qkv", parts=parts,
        **mixed,
    )  # fmt: skip
    t.linear("delta.z", values, "linear_attn.in_proj_z", "attn_gate", **forms(c.value_width))
    gates = (c.value_heads, c.width)
    t.linear("delta.a", gates, "linear_attn.in_proj_a", "ssm_alpha", **forms(1))
    t.linear("delta.b", gates, "linear_attn.in_proj_b", "ssm_beta", **forms(1))
    taps = forms(c.value_width, Taps(between=True), Taps(between=False), first=first, axis=1)
    conv = ("delta.conv.weight", "linear_attn.conv1d.weight", "ssm_conv1d.weight")
    t.put((c.taps, c.mixed_width), *conv, **taps, gguf_exact=True, parts=parts)
    heads = (c.value_heads,)
    t.put(heads, "delta.dt", "linear_attn.dt_bias", "ssm_dt.bias", **forms(1))
    rate = forms(1, gguf=Logarithm())
    t.put(heads, "delta.rate", "linear_attn.A_log", "ssm_a", **rate)
    t.gain("delta.norm", c.value_width, "linear_attn.norm", "ssm_norm")
    columns = forms(c.value_width, axis=1)
    t.linear("delta.o", values[::-1], "linear_attn.out_proj", "ssm_out", **columns)


def _parts(names: Sequence[str], sizes: Sequence[int]) -> Parts:
    """The parts of a row that holds these side by side."""
    ends = [*accumulate(sizes)]
    firsts = (end - size for end, size in zip(ends, sizes, strict=True))
    return tuple(zip(names, firsts, ends, strict=True))


def _value_heads(
    c: Config, scheme: Scheme, width: int, inner: Form, first: int = 0, axis: int = 0
) -> Form:
    """The form of a parameter that belongs to value heads, in the order that the file has."""
    tiles = scheme == "gguf" and c.value_heads != c.key_heads
    if tiles == c.tiled:
        return inner
    per_key = c.value_heads // c.key_heads
    return ValueHeads(c.key_heads, per_key, width, tiles, first, axis, inner)


def block(d: Decoder[Config], at: str, x_MD: Value) -> Value:
    """One layer: a delta rule or attention, then a gated feed-forward block."""
    h_MD = d.norm(f"{at}.norm1", x_MD)
    if d.config.is_attention(int(at.rpartition(".")[2])):
        x_MD = d.add(f"{at}.attn.add", x_MD, _attention(d, f"{at}.attn", h_MD))
    else:
        x_MD = d.add(f"{at}.delta.add", x_MD, _delta(d, f"{at}.delta", h_MD))
    h_MD = d.norm(f"{at}.norm2", x_MD)
    return d.add(f"{at}.ffn.add", x_MD, d.gated(f"{at}.ffn", h_MD))


def _attention(d: Decoder[Config], at: str, h_MD: Value) -> Value:
    both_MK = d.linear(f"{at}.q", h_MD)
    halves = d.graph.add_node(OPS["split_heads"], f"{at}.split", both_MK, heads=d.config.heads)
    q_MN, gate_MN = halves
    q_MN = d.norm(f"{at}.q_norm", q_MN)
    k_MO = d.norm(f"{at}.k_norm", d.linear(f"{at}.k", h_MD))
    v_MO = d.linear(f"{at}.v", h_MD)
    q_MN, k_MO = d.rope(f"{at}.q_rope", q_MN), d.rope(f"{at}.k_rope", k_MO)
    o_MN = d.attend(f"{at}.core", q_MN, k_MO, v_MO)
    return d.linear(f"{at}.o", d.graph.add(OPS["sigmoid_mul"], f"{at}.gate", gate_MN, o_MN))


def _delta(d: Decoder[Config], at: str, h_MD: Value) -> Value:
    c, qkv_MN = d.config, d.linear(f"{at}.qkv", h_MD)
    gates = (d.linear(f"{at}.{name}", h_MD) for name in ("a", "b"))
    of_heads = (d.weights[f"{at}.{name}"] for name in ("dt", "rate"))
    decay_MH, beta_MH = d.graph.add_node(OPS["delta_gates"], f"{at}.gates", *gates, *of_heads)
    taps_WN = d.weights[f"{at}.conv.weight"]
    past = (c.taps - 1, c.mixed_width)
    conv_MN = d.recur("causal_conv", f"{at}.conv", qkv_MN, taps_WN, state=past)
    o_MO = d.recur(
        "gated_delta", f"{at}.core", conv_MN, decay_MH, beta_MH,
        state=(c.value_heads, blocks(c.value_width), c.key_width, COLUMNS),
        key_heads=c.key_heads, key_width=c.key_width, tiled=c.tiled, eps=DELTA_EPS,
    )  # fmt: skip
    z_MO, normed_MO = d.linear(f"{at}.z", h_MD), d.norm(f"{at}.norm", o_MO)
    return d.linear(f"{at}.o", d.graph.add(OPS["silu_mul"], f"{at}.gate", z_MO, normed_MO))


FAMILY = Family(
    name="qwen35",
    Config=Config,
    weights=weights,
    block=block,
    TINY=TINY,
    variants=VARIANTS,
    hf_class="Qwen3_5ForCausalLM",
    hf_types=("qwen3_5", "qwen3_5_text"),
    from_hf=from_hf,
    to_hf=to_hf,
    from_gguf=from_gguf,
    to_gguf=to_gguf,
    in_hf_order=in_hf_order,
    own_tensors=own_tensors,
)
