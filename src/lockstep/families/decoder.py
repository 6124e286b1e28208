"""What the dense decoders share: the config, and the frame of the graph around their blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Generic, Literal, TypeVar, get_args

from lockstep.errors import UsageError
from lockstep.families.memory import Attend, Memory, Recur
from lockstep.families.rope import Rope, Scaling
from lockstep.families.weight import Weight
from lockstep.ir import Attr, Graph, InferenceShape, Value, check, f32, i32
from lockstep.ops import OPS
from lockstep.ops.attention import WIDEST_HEAD

# Far above every model that exists: a config that asks for more is broken, or hostile.
MAX_LAYERS = 1000
MAX_SIZE = 1 << 24

Activation = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """The dimensions and switches of a dense decoder."""

    vocab: int
    width: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    eps: float = 1e-6
    theta: float = 10000.0
    tied: bool = True
    activation: Activation = "silu"
    scaling: Scaling | None = None

    def __post_init__(self) -> None:
        for name in ("vocab", "width", "ffn", "layers", "heads", "kv_heads", "head_dim", "context"):
            most = MAX_LAYERS if name == "layers" else MAX_SIZE
            size = getattr(self, name)
            if not isinstance(size, int) or not 1 <= size <= most:
                raise UsageError(
                    f"config {name}: expected a whole number from 1 to {most}, got {size!r:.40}",
                    hint="choose a number in this range",
                )
        if self.heads % self.kv_heads:
            raise UsageError(
                f"config: expected heads to be a multiple of kv_heads, got {self.heads} and "
                f"{self.kv_heads}",
                hint="choose kv_heads that divides heads",
            )
        if self.head_dim % 2 or self.head_dim > WIDEST_HEAD:
            raise UsageError(
                f"config head_dim: expected an even number up to {WIDEST_HEAD}, "
                f"got {self.head_dim}",
                hint="choose an even head_dim (rope turns pairs), or more heads",
            )
        if self.activation not in get_args(Activation):
            raise UsageError(
                f"config activation: expected one of {', '.join(get_args(Activation))}, "
                f"got {self.activation!r:.40}"
            )
        for name, value in (("eps", self.eps), ("theta", self.theta)):
            if not (isfinite(value) and value > 0):
                raise UsageError(f"config {name}: expected a positive number, got {value}")
        for rope in self.ropes.values():
            rope.attrs()  # refuses what no table can be made of

    def window_of(self, layer: int) -> int:
        """How many positions a layer sees; 0 is all."""
        return 0

    @property
    def q_width(self) -> int:
        """Width of a row of queries."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of a row of keys or values."""
        return self.kv_heads * self.head_dim

    @property
    def ropes(self) -> dict[str, Rope]:
        """The tables of angles that its layers turn by, by their ids."""
        return {"rope": Rope(theta=self.theta, rotary=self.head_dim, scaling=self.scaling)}

    @property
    def embed_scale(self) -> float:
        """What the rows of the embedding table are multiplied by."""
        return 1.0


C = TypeVar("C", bound=DecoderConfig)


class Decoder(Generic[C]):
    """A graph under construction: what a family's block is written with.

    `weights` are its parameters by id; `attend` is causal attention over the sequences of the
    batch, or over the caches of `memory`.
    """

    def __init__(self, config: C, graph: Graph, weights: tuple[Weight, ...]) -> None:
        self.config = config
        self.graph = graph
        self.weights = {w.id: graph.input(w.id, f32(*w.shape), "parameter") for w in weights}
        self.attend: Attend
        self.recur: Recur
        self.memory: Memory | None = None  # of inference: caches and states
        self._ropes: dict[str, tuple[Value, ...]] = {}
        self._positions: Value

    def embed(self, tokens_M: Value) -> Value:
        """The rows of the embedding table, scaled where the model scales them."""
        x_MD = self.graph.add(OPS["embedding"], "embed", tokens_M, self.weights["embed.weight"])
        if self.config.embed_scale == 1.0:
            return x_MD
        return self.graph.add(OPS["scale"], "embed.scale", x_MD, by=self.config.embed_scale)

    def norm(self, id: str, x_MN: Value) -> Value:
        """RMS norm, with one gain for the whole row or one for every head."""
        gain_D = self.weights[f"{id}.weight"]
        return self.graph.add(OPS["rmsnorm"], id, x_MN, gain_D, eps=self.config.eps)

    def linear(self, id: str, x_MK: Value, weight: str | None = None) -> Value:
        """A linear with its bias where the weight table has one."""
        w_NK = self.weights[weight or f"{id}.weight"]
        return self.graph.add(OPS["linear"], id, x_MK, w_NK, self.weights.get(f"{id}.bias"))

    def rope(self, id: str, x_MN: Value, table: str = "rope") -> Value:
        """The rows turned by their positions, half-split."""
        rest = self.config.head_dim - self.config.ropes[table].rotary
        inputs = (x_MN, self._positions, *self._ropes[table])
        return self.graph.add(OPS["rope"], id, *inputs, rest=rest, interleaved=False, inverse=False)

    def act_mul(self, id: str, gate_MF: Value, up_MF: Value) -> Value:
        """The activated gate times `up`."""
        name = "silu_mul" if self.config.activation == "silu" else "gelu_mul"
        return self.graph.add(OPS[name], id, gate_MF, up_MF)

    def gated(self, at: str, h_MD: Value) -> Value:
        """A gated feed-forward block: act(gate) * up, taken down to the width again."""
        gate_MF, up_MF = self.linear(f"{at}.gate", h_MD), self.linear(f"{at}.up", h_MD)
        return self.linear(f"{at}.down", self.act_mul(f"{at}.act", gate_MF, up_MF))

    def add(self, id: str, a_MD: Value, b_MD: Value) -> Value:
        """The residual sum."""
        return self.graph.add(OPS["add"], id, a_MD, b_MD)

    def head(self, x_MD: Value) -> Value:
        """The logits, from the embedding table itself where it is tied."""
        return self.linear("head", x_MD, "embed.weight" if self.config.tied else "head.weight")

    def prepare_rope(self, positions_M: Value, context: int) -> None:
        """Adds the tables of angles for positions below `context`."""
        self._positions = positions_M
        self.graph.section = "init"
        self._ropes = {
            id: self.graph.add_node(OPS["rope_table"], id, context=context, **rope.attrs())
            for id, rope in self.config.ropes.items()
        }
        self.graph.section = "forward"


Block = Callable[[Decoder[C], str, Value], Value]  # (decoder, path of the layer, x_MD) -> x_MD


def dense_block(d: Decoder[C], at: str, x_MD: Value) -> Value:
    """One layer: attention, with normed heads where the weight table has gains, then a gated block.

    It adds what each gives to the row that it was given the norm of.
    """

    def heads(name: str) -> Value:
        x_MN = d.linear(f"{at}.attn.{name}", h_MD)
        norm = f"{at}.attn.{name}_norm"
        return d.norm(norm, x_MN) if f"{norm}.weight" in d.weights else x_MN

    h_MD = d.norm(f"{at}.norm1", x_MD)
    q_MN, k_MO, v_MO = (heads(name) for name in ("q", "k", "v"))
    q_MN, k_MO = d.rope(f"{at}.attn.q_rope", q_MN), d.rope(f"{at}.attn.k_rope", k_MO)
    window = d.config.window_of(int(at.rpartition(".")[2]))
    o_MN = d.attend(f"{at}.attn.core", q_MN, k_MO, v_MO, window=window)
    x_MD = d.add(f"{at}.attn.add", x_MD, d.linear(f"{at}.attn.o", o_MN))
    h_MD = d.norm(f"{at}.norm2", x_MD)
    return d.add(f"{at}.ffn.add", x_MD, d.gated(f"{at}.ffn", h_MD))


@dataclass(frozen=True, slots=True)
class _Sequences:
    """What looks back over the sequences of a batch, each of so many tokens."""

    graph: Graph
    config: DecoderConfig
    tokens: int

    def attend(
        self, id: str, q_MN: Value, k_MO: Value, v_MO: Value, *, window: int = 0, scale: float = 0.0
    ) -> Value:
        c = self.config
        return self.graph.add(
            OPS["attention"], id, q_MN, k_MO, v_MO, heads=c.heads, kv_heads=c.kv_heads,
            tokens=self.tokens, window=window, scale=scale or c.head_dim**-0.5,
        )  # fmt: skip

    def recur(
        self, op: str, id: str, *inputs: Value, state: tuple[int, ...], **attrs: Attr
    ) -> Value:
        return self.graph.add(OPS[op], id, *inputs, **attrs, tokens=self.tokens)


def training_graph(
    name: str,
    config: C,
    weights: tuple[Weight, ...],
    block: Block[C],
    batch: int,
    tokens: int,
) -> Graph:
    """The forward graph of `batch` sequences of `tokens`, and its summed loss.

    Raises: UsageError if the sequences are longer than the model's context.
    """
    _at_most_context(config, tokens)
    graph = Graph(name)
    rows = batch * tokens
    tokens_M = graph.input("tokens", i32(rows), "input")
    targets_M = graph.input("targets", i32(rows), "input")
    positions_M = graph.input("positions", i32(rows), "input")
    scale = graph.input("scale", f32(), "input")
    decoder = Decoder(config, graph, weights)
    decoder.prepare_rope(positions_M, tokens)
    sequences = _Sequences(graph, config, tokens)
    decoder.attend, decoder.recur = sequences.attend, sequences.recur
    x_MD = decoder.embed(tokens_M)
    for layer in range(config.layers):
        x_MD = block(decoder, f"layers.{layer}", x_MD)
    logits_MV = decoder.head(decoder.norm("norm", x_MD))
    loss_M = graph.add(OPS["cross_entropy"], "loss", logits_MV, targets_M, scale)
    graph.outputs = {"loss": graph.add(OPS["loss_sum"], "loss.sum", loss_M).id}
    return check(graph, "forward")


def inference_graph(
    name: str,
    config: C,
    weights: tuple[Weight, ...],
    block: Block[C],
    shape: InferenceShape,
) -> Graph:
    """The graph of several sequences that grow by up to `shape.rows` tokens a call.

    Each row has its token, its position and the slot of its sequence; the rows of a slot are
    neighbours with ascending positions. Logits are those of the rows that `wanted` lists.

    Raises: UsageError if the context is more than the model's.
    """
    _at_most_context(config, shape.context)
    graph = Graph(name, {"rows": shape.rows, "outs": shape.outs})
    tokens_M = graph.input("tokens", i32("rows"), "input")
    positions_M = graph.input("positions", i32("rows"), "input")
    slots_M = graph.input("slots", i32("rows"), "input")
    wanted_B = graph.input("wanted", i32("outs"), "input")
    decoder = Decoder(config, graph, weights)
    decoder.prepare_rope(positions_M, shape.context)
    decoder.memory = Memory(graph, shape, config, positions_M, slots_M)
    decoder.attend, decoder.recur = decoder.memory.attend, decoder.memory.recur
    x_MD = decoder.embed(tokens_M)
    for layer in range(config.layers):
        x_MD = block(decoder, f"layers.{layer}", x_MD)
    x_BD = decoder.norm("norm", graph.add(OPS["take_rows"], "wanted_rows", x_MD, wanted_B))
    graph.outputs = {"logits": decoder.head(x_BD).id, "hidden": x_BD.id}
    return check(graph, "forward")


def _at_most_context(config: DecoderConfig, tokens: int) -> None:
    if not 1 <= tokens <= config.context:
        raise UsageError(
            f"tokens: expected 1 to {config.context} (the model's context), got {tokens}",
            hint="choose shorter sequences, or a config with a longer context",
        )
