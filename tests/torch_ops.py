"""What PyTorch computes in float32 for each op: the measure of how exact a kernel has to be.

Source of the formulas: PyTorch's own functions, optimizers and autograd wherever they exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lockstep.ops.panels import STORED, dequantise

Outputs = tuple[Tensor, ...]


def backward(function: Callable[..., Tensor], upstream: Tensor, *inputs: Tensor) -> Outputs:
    """The gradients of a function at these inputs, by autograd."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    return torch.autograd.grad(function(*leaves), leaves, upstream)


def accumulated(new: Tensor, acc: Tensor | None, accumulate: Tensor | None) -> Outputs:
    """The sum with what was there before, if it counts."""
    counts = acc is not None and (accumulate is None or bool(accumulate))
    return (acc + new if counts else new,)


def plus(value: Tensor, *others: Tensor | None) -> Outputs:
    """The sum with whatever is present."""
    for other in others:
        value = value if other is None else value + other
    return (value,)


def add(a: Tensor, b: Tensor) -> Outputs:
    return (a + b,)


def embedding_dw(ids: Tensor, dx: Tensor, acc: Tensor, accumulate: Tensor, vocab: int) -> Outputs:
    table = torch.zeros(vocab, dx.shape[1])
    (grad,) = backward(lambda w: functional.embedding(ids.long(), w), dx, table)
    return accumulated(grad, acc, accumulate)


def rmsnorm(x: Tensor, gain: Tensor, eps: float) -> Outputs:
    x_MHD = x.view(len(x), -1, len(gain))
    rstd = torch.rsqrt(x_MHD.pow(2).mean(-1) + eps)
    return functional.rms_norm(x_MHD, gain.shape, gain, eps).view(x.shape), rstd


def rmsnorm_dx(dy: Tensor, x: Tensor, gain: Tensor, rstd: Tensor, add: Tensor | None) -> Outputs:
    x_MHD, r = x.view(len(x), -1, len(gain)), rstd[..., None]
    direct = dy.view(x_MHD.shape) * gain
    dx = r * (direct - x_MHD * r**2 * (direct * x_MHD).mean(-1, keepdim=True))
    return plus(dx.view(x.shape), add)


def rmsnorm_dgain(dy: Tensor, x: Tensor, rstd: Tensor, acc: Tensor, accumulate: Tensor) -> Outputs:
    terms = (dy * x).view(*rstd.shape, -1) * rstd[..., None]
    return accumulated(terms.sum((0, 1)), acc, accumulate)


def linear(x: Tensor, w: Tensor, b: Tensor | None, add: Tensor | None) -> Outputs:
    return plus(functional.linear(x, w, b), add)


def linear_packed(
    x: Tensor, panels: Tensor, b: Tensor | None, add: Tensor | None, n: int
) -> Outputs:
    return linear(x, panels.transpose(1, 2).reshape(-1, panels.shape[1])[:n], b, add)


def linear_dx(dy: Tensor, w: Tensor, add: Tensor | None) -> Outputs:
    return plus(dy @ w, add)


def linear_dx_packed(dy: Tensor, panels: Tensor, add: Tensor | None, k: int) -> Outputs:
    return linear_dx(dy, panels.transpose(0, 1).reshape(panels.shape[1], -1)[:, :k], add)


def linear_dw(dy: Tensor, x: Tensor, acc: Tensor, accumulate: Tensor) -> Outputs:
    return accumulated(dy.T @ x, acc, accumulate)


def linear_db(dy: Tensor, acc: Tensor, accumulate: Tensor) -> Outputs:
    return accumulated(dy.sum(0), acc, accumulate)


def rope_table(
    theta: float,
    context: int,
    rotary: int,
    factor: float,
    by_pair: bool,
    begin: float,
    end: float,
    original: float,
    magnitude: float,
) -> Outputs:
    frequency = 1.0 / theta ** (torch.arange(0, rotary, 2).float() / rotary)
    if factor != 1.0:
        along = original * frequency / (2 * torch.pi)
        if by_pair:
            along = torch.arange(rotary // 2).float()
        kept = ((along - begin) / (end - begin)).clamp(0, 1)
        frequency = (1 - kept) * frequency / factor + kept * frequency
    angle = torch.outer(torch.arange(context).float(), frequency)
    return angle.cos() * magnitude, angle.sin() * magnitude


def rope(
    x: Tensor,
    positions: Tensor,
    cos: Tensor,
    sin: Tensor,
    rest: int,
    interleaved: bool,
    inverse: bool,
) -> Outputs:
    R = cos.shape[1]
    c, s = cos[positions.long()][:, None], sin[positions.long()][:, None]
    s = -s if inverse else s
    turning, still = x.view(len(x), -1, 2 * R + rest).split((2 * R, rest), -1)
    pairs = turning.reshape(len(x), -1, *((R, 2) if interleaved else (2, R)))
    a, b = pairs.unbind(-1 if interleaved else -2)
    turned = torch.stack((a * c - b * s, b * c + a * s), -1 if interleaved else -2)
    return (torch.cat((turned.reshape(turning.shape), still), -1).reshape(x.shape),)


def heads_first(x: Tensor, heads: int, tokens: int) -> Tensor:
    """(B*T, heads*E) as (B, heads, T, E)."""
    return x.view(-1, tokens, heads, x.shape[1] // heads).transpose(1, 2)


def rows_first(x: Tensor) -> Tensor:
    """(B, heads, T, E) as (B*T, heads*E)."""
    return x.transpose(1, 2).reshape(x.shape[0] * x.shape[2], -1)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    kv_heads: int,
    tokens: int,
    window: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The output, and the log-sums."""
    q4 = heads_first(q, heads, tokens)
    k4, v4 = (heads_first(x, kv_heads, tokens) for x in (k, v))
    sees = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    if window:
        sees = sees.triu(1 - window)
    o = functional.scaled_dot_product_attention(
        q4, k4, v4, attn_mask=sees, scale=scale, enable_gqa=True
    )
    wide = k4.repeat_interleave(heads // kv_heads, 1)
    scores = q4 @ wide.transpose(-1, -2) * scale
    lse = scores.masked_fill(~sees, -torch.inf).logsumexp(-1)
    return rows_first(o), lse.transpose(1, 2).reshape(-1, heads)


def attention_grad(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, **attrs: Any
) -> Outputs:
    return backward(lambda *x: attend(*x, **attrs)[0], do, q, k, v)


def scaled(x: Tensor, scale: Tensor | None = None) -> Tensor:
    """The elements of a cache, in float, each times the scale of its group of 32."""
    if scale is None:
        return x.float()
    return x.float() * scale.float().repeat_interleave(32, 3)[..., : x.shape[3]]


def attend_cached(
    q: Tensor, *inputs: Tensor, heads: int, kv_heads: int, window: int, scale: float
) -> Outputs:
    """Each row over the rows that it sees of its sequence's caches, made dense."""
    *caches, positions, slots, _ = inputs
    half = len(caches) // 2
    keys = [x.swapaxes(3, 4).flatten(2, 3) for x in caches[:half]]
    k, v = (scaled(*parts) for parts in (keys, caches[half:]))
    rows = []
    for x, position, slot in zip(q, positions.tolist(), slots.tolist(), strict=True):
        first = max(0, position + 1 - window) if window else 0
        seen = (cache[None, slot, :, first : position + 1] for cache in (k, v))
        o = functional.scaled_dot_product_attention(
            x.view(1, heads, 1, -1), *seen, scale=scale, enable_gqa=True
        )
        rows.append(o.flatten())
    return (torch.stack(rows),)


def gated(act: Callable[[Tensor], Tensor]) -> Callable[..., Outputs]:
    return lambda gate, up: (act(gate) * up,)


def gated_grad(act: Callable[[Tensor], Tensor]) -> Callable[..., Outputs]:
    return lambda dh, gate, up: backward(lambda g, u: act(g) * u, dh, gate, up)


def causal_conv(x: Tensor, w: Tensor, tokens: int) -> Outputs:
    x_BNT = x.view(-1, tokens, x.shape[1]).transpose(1, 2)
    padded = functional.pad(x_BNT, (len(w) - 1, 0))
    y_BNT = functional.silu(functional.conv1d(padded, w.T[:, None], groups=x.shape[1]))
    return (y_BNT.transpose(1, 2).reshape(x.shape),)


def causal_conv_grad(
    dy: Tensor, x: Tensor, w: Tensor, acc: Tensor, accumulate: Tensor, tokens: int
) -> Outputs:
    dx, dw = backward(lambda *inputs: causal_conv(*inputs, tokens)[0], dy, x, w)
    return *accumulated(dw, acc, accumulate), dx


def runs_of_slots(positions: Tensor, slots: Tensor) -> Iterator[tuple[slice, int, bool]]:
    """Consecutive rows of one slot: which, the slot, and whether it starts anew."""
    for slot in slots.unique():
        (rows,) = torch.where(slots == slot)
        yield slice(int(rows[0]), int(rows[-1]) + 1), int(slot), int(positions[rows[0]]) == 0


def causal_conv_cached(
    x: Tensor, w: Tensor, state: Tensor, positions: Tensor, slots: Tensor
) -> Outputs:
    y, state = torch.empty_like(x), state.clone()
    for rows, slot, fresh in runs_of_slots(positions, slots):
        past = torch.zeros_like(state[slot]) if fresh else state[slot]
        seen = torch.cat([past, x[rows]])
        y[rows] = causal_conv(seen, w, len(seen))[0][len(past) :]
        state[slot] = seen[-len(past) :]
    return y, state


def delta_gates(a: Tensor, b: Tensor, dt: Tensor, rate: Tensor) -> Outputs:
    return (-rate.exp() * functional.softplus(a + dt)).exp(), b.sigmoid()


def delta_gates_grad(
    ddecay: Tensor, dbeta: Tensor, a: Tensor, b: Tensor, dt: Tensor, rate: Tensor
) -> Outputs:
    rows = rate.expand_as(a)  # of its own for each row, so that its gradient is not summed
    da, drate = backward(lambda x, r: delta_gates(x, b, dt, r)[0], ddecay, a, rows)
    (db,) = backward(torch.sigmoid, dbeta, b)
    return da, db, drate


def delta_heads(
    x: Tensor, heads: int, key_heads: int, key_width: int, tiled: bool, eps: float
) -> Outputs:
    """q and k as unit vectors and v, each (value heads, rows, width)."""
    keys = key_heads * key_width
    q, k, v = x.split([keys, keys, x.shape[1] - 2 * keys], 1)
    units = []
    for part in (q.view(len(x), key_heads, -1), k.view(len(x), key_heads, -1)):
        unit = part * torch.rsqrt((part * part).sum(-1, keepdim=True) + eps)
        group = heads // key_heads
        wide = unit.repeat(1, group, 1) if tiled else unit.repeat_interleave(group, 1)
        units.append(wide.transpose(0, 1))
    return units[0] / key_width**0.5, units[1], v.view(len(x), heads, -1).transpose(0, 1)


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, state: Tensor
) -> Outputs:
    """The output (rows, heads * width) of one sequence, and the state after it."""
    outputs = []
    for t in range(len(decay)):
        state = state * decay[t, :, None, None]
        known = (state * k[:, t, :, None]).sum(-2)
        news = (v[:, t] - known) * beta[t, :, None]
        state = state + k[:, t, :, None] * news[:, None]
        outputs.append((state * q[:, t, :, None]).sum(-2))
    return torch.stack(outputs).flatten(1), state


def gated_delta(x: Tensor, decay: Tensor, beta: Tensor, tokens: int, **attrs: Any) -> Outputs:
    outputs = []
    for begin in range(0, len(x), tokens):
        rows = slice(begin, begin + tokens)
        q, k, v = delta_heads(x[rows], decay.shape[1], **attrs)
        state = torch.zeros(len(v), k.shape[-1], v.shape[-1])
        outputs.append(delta_rule(q, k, v, decay[rows], beta[rows], state)[0])
    return (torch.cat(outputs),)


def gated_delta_grad(do: Tensor, *inputs: Tensor, tokens: int, **attrs: Any) -> Outputs:
    gradients = backward(lambda *i: gated_delta(*i, tokens=tokens, **attrs)[0], do, *inputs)
    x, decay, beta = inputs
    heads, starts = decay.shape[1], []
    for begin in range(0, len(x), tokens):
        state = torch.zeros(heads, attrs["key_width"], do.shape[1] // heads)
        for first in range(begin, begin + tokens, 16):
            starts.append(in_blocks(state, 16))
            rows = slice(first, min(first + 16, begin + tokens))
            units = delta_heads(x[rows], heads, **attrs)
            state = delta_rule(*units, decay[rows], beta[rows], state)[1]
    runs = -(-tokens // 16)
    return *gradients, torch.stack(starts).unflatten(0, (-1, runs)).permute(0, 2, 3, 1, 4, 5)


def in_blocks(state: Tensor, columns: int) -> Tensor:
    """A state (heads, E, V) as (heads, blocks, E, columns)."""
    padded = functional.pad(state, (0, -state.shape[-1] % columns))
    return padded.unflatten(-1, (-1, columns)).transpose(1, 2)


def gated_delta_cached(
    x: Tensor,
    decay: Tensor,
    beta: Tensor,
    state: Tensor,
    positions: Tensor,
    slots: Tensor,
    **attrs: Any,
) -> Outputs:
    q, k, v = delta_heads(x, decay.shape[1], **attrs)
    o, state = torch.empty(len(x), v.shape[0] * v.shape[-1]), state.clone()
    for rows, slot, fresh in runs_of_slots(positions, slots):
        before = state[slot].transpose(1, 2).flatten(2)[..., : v.shape[-1]]
        before = torch.zeros_like(before) if fresh else before
        heads = (part[:, rows] for part in (q, k, v))
        o[rows], after = delta_rule(*heads, decay[rows], beta[rows], before)
        state[slot] = in_blocks(after, 32)
    return o, state


def gelu(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


def cross_entropy(logits: Tensor, targets: Tensor, scale: Tensor) -> Outputs:
    def loss(x: Tensor) -> Tensor:
        return functional.cross_entropy(x, targets.long(), ignore_index=-1, reduction="none")

    (dlogits,) = backward(lambda x: loss(x).sum() * scale, torch.tensor(1.0), logits)
    return loss(logits), dlogits


def sum_squares(x: Tensor) -> Outputs:
    return (torch.stack([run.double().pow(2).sum() for run in x.reshape(-1).split(4096)]),)


def clip_scale(part: Tensor, max_norm: Tensor) -> Outputs:
    norm = part.sum().sqrt()
    coef = (max_norm / (norm.float() + 1e-6)).clamp(max=1.0)
    return norm, coef if max_norm > 0 else torch.tensor(1.0)


def sgd(p: Tensor, g: Tensor, coef: Tensor, lr: Tensor, weight_decay: float) -> Outputs:
    weight = torch.nn.Parameter(p.clone())
    weight.grad = g * coef
    torch.optim.SGD([weight], lr=float(lr), weight_decay=weight_decay).step()
    return (weight.detach(),)


def adamw(
    p: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    coef: Tensor,
    lr: Tensor,
    step: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> Outputs:
    weight = torch.nn.Parameter(p.clone())
    weight.grad = g * coef
    optimizer = torch.optim.AdamW(
        [weight], lr=float(lr), betas=(beta1, beta2), eps=eps, weight_decay=weight_decay
    )
    moments = {"step": step.float() - 1, "exp_avg": m.clone(), "exp_avg_sq": v.clone()}
    optimizer.state[weight] = moments
    optimizer.step()
    return weight.detach(), moments["exp_avg"], moments["exp_avg_sq"]


def stored_product(stored: str) -> Callable[..., Outputs]:
    """The product with a packed weight, dequantised, of rows that may be quantised."""

    def product(*inputs: Any, n: int, bits: int = 0) -> Outputs:
        *rows, panels, bias, add = inputs
        x = rows[0].float()
        if bits:
            x = x * rows[1].repeat_interleave(32, dim=1)
        w = dequantise(stored, panels.numpy(), n, x.shape[1])
        return plus(x @ torch.from_numpy(w).T, bias, add)

    return product


TORCH: dict[str, Callable[..., Outputs]] = {
    "add": add,
    **{f"linear_{name.lower()}": stored_product(name) for name in STORED},
    "embedding_dw": embedding_dw,
    "rmsnorm": rmsnorm,
    "rmsnorm_dx": rmsnorm_dx,
    "rmsnorm_dgain": rmsnorm_dgain,
    "linear": linear,
    "linear_packed": linear_packed,
    "linear_dx": linear_dx,
    "linear_dx_packed": linear_dx_packed,
    "linear_dw": linear_dw,
    "linear_db": linear_db,
    "rope_table": rope_table,
    "rope": rope,
    "scale": lambda x, by: (x * by,),
    "attention": attend,
    "attention_grad": attention_grad,
    **{f"attend_{element}": attend_cached for element in ("f32", "f16", "q8_0")},
    "silu_mul": gated(functional.silu),
    "silu_mul_grad": gated_grad(functional.silu),
    "sigmoid_mul": gated(torch.sigmoid),
    "sigmoid_mul_grad": gated_grad(torch.sigmoid),
    "causal_conv": causal_conv,
    "causal_conv_grad": causal_conv_grad,
    "causal_conv_cached": causal_conv_cached,
    "delta_gates": delta_gates,
    "delta_gates_grad": delta_gates_grad,
    "gated_delta": gated_delta,
    "gated_delta_grad": gated_delta_grad,
    "gated_delta_cached": gated_delta_cached,
    "gelu_mul": gated(gelu),
    "gelu_mul_grad": gated_grad(gelu),
    "cross_entropy": cross_entropy,
    "loss_sum": lambda loss: (loss.double().sum(),),
    "sum_squares": sum_squares,
    "clip_scale": clip_scale,
    "sgd": sgd,
    "adamw": adamw,
}
