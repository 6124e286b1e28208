"""The registry of ops; importing this room fills it."""

import lockstep.ops.add
import lockstep.ops.attend
import lockstep.ops.attention
import lockstep.ops.cache
import lockstep.ops.causal_conv
import lockstep.ops.cross_entropy
import lockstep.ops.delta_gates
import lockstep.ops.embed_panels
import lockstep.ops.embedding
import lockstep.ops.gate_mul
import lockstep.ops.gated_delta
import lockstep.ops.linear
import lockstep.ops.linear_float
import lockstep.ops.linear_packed
import lockstep.ops.linear_quant
import lockstep.ops.optimizer
import lockstep.ops.quantize_rows
import lockstep.ops.rmsnorm
import lockstep.ops.rope
import lockstep.ops.scale
import lockstep.ops.split_heads  # noqa: F401
from lockstep.ops.registry import OPS, VECTOR_HEADER

__all__ = ["OPS", "VECTOR_HEADER"]
