"""Pickles read as data: a small stack machine of our own, which calls nothing and imports nothing.

What a pickle would call becomes an inert `Call` with the name of what was to be called. The names
come from a closed list; any other name, and any opcode that tensors do not need, is refused.
"""

from __future__ import annotations

import io
import pickletools
import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import IO, Any, Protocol, cast

from lockstep.errors import InputError
from lockstep.formats.locate.bounded import is_writable, shown

MAX_BYTES = 64 << 20  # the pickle of a checkpoint with 50 000 tensors takes some ten megabytes
MAX_STEPS = 8_000_000  # opcodes; each makes one small object at most, so this bounds the memory
COSTS = dict.fromkeys(("EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET", "REDUCE", "NEWOBJ"), 4)
HINT = "load it where you trust it, and write tensors and plain values only"


@dataclass(frozen=True, slots=True, eq=False)
class Global:
    """A name of a module, such as `torch.float32`. It was not looked up."""

    name: str


@dataclass(slots=True, eq=False)
class Call:
    """What the pickle would have called, with which arguments, and the state it would have set."""

    function: str
    arguments: tuple[Any, ...]
    state: Any = None


@dataclass(slots=True, eq=False)
class Table:
    """A dictionary as pairs, since a key may be an inert record or hash slowly."""

    kind: str = "dict"
    pairs: list[tuple[Any, Any]] = field(default_factory=list)
    state: Any = None


@dataclass(slots=True, eq=False)
class Bag:
    """A set as a list."""

    items: list[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Persistent:
    """A reference to something outside the pickle, such as a storage."""

    id: Any


class _Mark:
    """Where a run of items begins on the stack."""


MARK = _Mark()
TABLES = {
    "collections.OrderedDict": "OrderedDict",
    "collections.defaultdict": "defaultdict",
    "collections.Counter": "Counter",
    "builtins.dict": "dict",
}
PLAIN = frozenset({*TABLES, "builtins.set", "builtins.list", "builtins.int", "builtins.float",
                   "_codecs.encode"})  # fmt: skip


class Stream(Protocol):
    """What the reader of opcodes needs of a file."""

    def read(self, n: int, /) -> bytes:
        """At most n bytes."""

    def readline(self) -> bytes:
        """Up to the end of the line."""

    def tell(self) -> int:
        """The place in bytes."""


class Window:
    """A file from where it stands, of which no more than a bound is ever read."""

    def __init__(self, file: IO[bytes], n_bytes: int) -> None:
        self.file = file
        self.left = n_bytes

    def read(self, n: int, /) -> bytes:
        """Exactly as many bytes as there are, up to n; a length that lies allocates nothing."""
        if n > self.left:
            raise ValueError(f"{n} bytes are announced where at most {self.left} may follow")
        data = self.file.read(n)
        self.left -= len(data)
        return data

    def readline(self) -> bytes:
        """Up to the end of the line, or to the bound."""
        data = self.file.readline(self.left)
        self.left -= len(data)
        return data

    def tell(self) -> int:
        """The place in the file, in bytes."""
        return self.file.tell()


def read_pickle(data: bytes | Stream, where: str, allowed: Collection[str]) -> Any:
    """The one object of a pickle, as plain values and inert records.

    Raises: InputError if it is damaged, too big, or names anything that is not allowed.
    """
    stream = Window(io.BytesIO(data), MAX_BYTES) if isinstance(data, bytes) else data
    machine = _Machine(where, frozenset(allowed) | PLAIN)
    try:
        return machine.run(stream)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, struct.error) as error:
        raise InputError(
            f"{where}: expected a pickle of tensors and plain values, got a damaged one: "
            f"{shown(str(error))}",
            hint="write or download the file again",
        ) from error


class _Machine:
    """The stack, the memo, and what is left of the budget of steps."""

    def __init__(self, where: str, allowed: frozenset[str]) -> None:
        self.where = where
        self.allowed = allowed
        self.left = MAX_STEPS
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, stream: Stream) -> Any:
        """Walks the opcodes up to STOP."""
        begin = end = 0  # of the operation before, and of the frame
        for opcode, argument, place in pickletools.genops(cast(IO[bytes], stream)):
            name, at = opcode.name, place or 0
            self.spend(COSTS.get(name, 1))
            if begin < end < at or (at < end and name == "FRAME") or (
                at + 1 < end and name == "STOP"
            ):  # fmt: skip
                raise ValueError("a frame does not end where an operation does")
            begin = at
            if name == "FRAME":
                end = at + 9 + int(argument or 0)
            if name in LITERALS:
                if isinstance(argument, str) and not is_writable(argument):
                    raise self.refuse("a text with half a sign, which UTF-8 cannot hold")
                self.stack.append(argument)
            elif name == "STOP":
                if len(self.stack) != 1:
                    raise ValueError("the stack does not hold one object at the end")
                return self.stack[0]
            elif name in STEPS:
                STEPS[name](self, argument)
            else:
                raise self.refuse(f"the opcode {name}")
        raise ValueError("it has no end")

    def spend(self, n: int) -> None:
        """Counts what was built, so that copies of shared objects cannot fill the memory."""
        self.left -= n
        if self.left < 0:
            raise InputError(
                f"{self.where}: expected a pickle of at most {MAX_STEPS} steps, got more",
                hint="split the checkpoint; a pickle of this size is no list of tensors",
            )

    def refuse(self, what: str) -> InputError:
        """The refusal of something that a checkpoint has no need of."""
        return InputError(
            f"{self.where}: expected only tensors and plain values, got {shown(what)}", hint=HINT
        )

    def pop(self, kind: type | tuple[type, ...] = object) -> Any:
        """The top of the stack, which must be of a kind."""
        value = self.stack.pop()
        if value is MARK or not isinstance(value, kind):
            raise ValueError(f"an operand is of the wrong kind: {type(value).__name__}")
        return value

    def to_mark(self) -> list[Any]:
        """The items above the last mark."""
        for i in range(len(self.stack) - 1, -1, -1):
            if self.stack[i] is MARK:
                items = self.stack[i + 1 :]
                del self.stack[i:]
                return items
        raise ValueError("a mark is missing")

    def top(self, kind: type) -> Any:
        """The top of the stack, left there."""
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise ValueError(f"expected a {kind.__name__} to add to")
        return self.stack[-1]

    def name(self, module: str, name: str) -> Global:
        """A name of the closed list."""
        module = {"__builtin__": "builtins"}.get(module, module)
        full = f"{module}.{name}"
        if full not in self.allowed:
            raise self.refuse(full)
        return Global(full)

    def call(self, function: Any, arguments: Any) -> Any:
        """A call that is not made: containers and bytes are built here, the rest is inert."""
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise self.refuse("a call of something that is no name")
        if function.name in TABLES:
            return self.table(TABLES[function.name], arguments)
        if function.name == "builtins.set":
            items = list(arguments[0]) if arguments and isinstance(arguments[0], list) else []
            if len(arguments) > 1 or (arguments and not isinstance(arguments[0], list)):
                raise self.refuse("a set made of something else than a list")
            self.spend(len(items))
            return Bag(items)
        if function.name == "_codecs.encode":
            if len(arguments) != 2 or not isinstance(arguments[0], str):
                raise self.refuse("an encoding of something that is no text")
            if arguments[1] not in ("latin1", "latin-1"):
                raise self.refuse("an encoding other than latin1")
            self.spend(len(arguments[0]))
            return arguments[0].encode("latin1")
        return Call(function.name, arguments)

    def table(self, kind: str, arguments: tuple[Any, ...]) -> Table:
        """A dictionary, empty or of pairs."""
        found = Table(kind)
        if kind == "defaultdict":
            arguments = ()  # the factory makes values that are not there yet
        if not arguments:
            return found
        items = arguments[0]
        pairs = items.pairs if isinstance(items, Table) else items
        if len(arguments) != 1 or not isinstance(pairs, list):
            raise self.refuse(f"a {kind} made of something else than pairs")
        self.spend(len(pairs))
        for pair in pairs:
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise self.refuse(f"a {kind} made of something else than pairs")
            found.pairs.append((pair[0], pair[1]))
        return found

    def set_items(self, items: list[Any]) -> None:
        """Adds keys and values to the dictionary on the stack."""
        if len(items) % 2:
            raise ValueError("a key has no value")
        self.top(Table).pairs.extend(zip(items[::2], items[1::2], strict=True))

    def build(self, state: Any) -> None:
        """Keeps the state that the object on the stack would have been given."""
        target = self.stack[-1]
        if not isinstance(target, Call | Table):
            raise self.refuse(f"a state for a {type(target).__name__}")
        if target.state is not None:
            raise self.refuse("a second state for one object")
        target.state = state

    def add_to_set(self, items: list[Any]) -> None:
        """Adds items to the set on the stack."""
        self.top(Bag).items.extend(items)

    def remember(self, place: int) -> None:
        """Gives the top of the stack a place in the memo."""
        if not self.stack or self.stack[-1] is MARK:
            raise ValueError("there is nothing to remember")
        self.memo[place] = self.stack[-1]

    def reduce(self) -> None:
        """Takes arguments and function from the stack."""
        arguments = self.pop(tuple)
        self.stack.append(self.call(self.pop(), arguments))

    def short_tuple(self, n: int) -> None:
        """The last n items as a tuple."""
        items = [self.pop() for _ in range(n)]
        self.stack.append(tuple(reversed(items)))

    def stack_global(self) -> None:
        """A name whose two halves are on the stack."""
        name, module = self.pop(str), self.pop(str)
        self.stack.append(self.name(module, name))


LITERALS = frozenset(
    {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BINSTRING", "SHORT_BINSTRING",
    }
)  # fmt: skip
Step = Callable[[_Machine, Any], None]


def _push(make: Callable[[], Any]) -> Step:
    return lambda machine, _: machine.stack.append(make())


def _append(machine: _Machine, items: list[Any]) -> None:
    machine.top(list).extend(items)


def _one_item(machine: _Machine) -> None:
    value, key = machine.pop(), machine.pop()
    machine.set_items([key, value])


STEPS: dict[str, Step] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,  # where it ends was checked
    "NONE": _push(lambda: None),
    "NEWTRUE": _push(lambda: True),
    "NEWFALSE": _push(lambda: False),
    "EMPTY_DICT": _push(Table),
    "EMPTY_LIST": _push(list),
    "EMPTY_TUPLE": _push(tuple),
    "EMPTY_SET": _push(lambda: Bag([])),
    "MARK": _push(lambda: MARK),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.to_mark())),
    "TUPLE1": lambda machine, _: machine.short_tuple(1),
    "TUPLE2": lambda machine, _: machine.short_tuple(2),
    "TUPLE3": lambda machine, _: machine.short_tuple(3),
    "APPEND": lambda machine, _: _append(machine, [machine.pop()]),
    "APPENDS": lambda machine, _: _append(machine, machine.to_mark()),
    "ADDITEMS": lambda machine, _: machine.add_to_set(machine.to_mark()),
    "FROZENSET": lambda machine, _: machine.stack.append(Bag(machine.to_mark())),
    "SETITEM": lambda machine, _: _one_item(machine),
    "SETITEMS": lambda machine, _: machine.set_items(machine.to_mark()),
    "GLOBAL": lambda machine, names: machine.stack.append(machine.name(*names.split(" ", 1))),
    "STACK_GLOBAL": lambda machine, _: machine.stack_global(),
    "REDUCE": lambda machine, _: machine.reduce(),
    "NEWOBJ": lambda machine, _: machine.reduce(),
    "BUILD": lambda machine, _: machine.build(machine.pop()),
    "BINPERSID": lambda machine, _: machine.stack.append(Persistent(machine.pop())),
    "BINPUT": lambda machine, place: machine.remember(place),
    "LONG_BINPUT": lambda machine, place: machine.remember(place),
    "MEMOIZE": lambda machine, _: machine.remember(len(machine.memo)),
    "BINGET": lambda machine, place: machine.stack.append(machine.memo[place]),
    "LONG_BINGET": lambda machine, place: machine.stack.append(machine.memo[place]),
}
