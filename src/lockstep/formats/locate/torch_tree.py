"""The tree of what torch pickles, as leaves: tensors, and values that are none."""

from __future__ import annotations

from typing import Any

from lockstep.errors import InputError
from lockstep.formats.leaf import ElementType, Held, Index, Key, Leaf, LeafPath, Name, path_text
from lockstep.formats.locate.bounded import shown
from lockstep.formats.locate.torch_values import SUBCLASS, Find, size_of, tensor_of
from lockstep.formats.restricted_pickle import Bag, Call, Global, Table

HINT = "write the checkpoint with plain tensors and plain values"
ONLY = "array"  # the name of a tensor that is the whole file
MAX_DEPTH = 64
MAX_NAME = 16_384  # characters
MAX_NAMES = 32 << 20  # characters of all names together: shared branches of a pickle may explode
MAX_VALUE = 1 << 20  # characters of one value that is no tensor
ATTRIBUTED = (SUBCLASS, "torch._utils._rebuild_parameter_with_state")
ATTRIBUTES = "tensors with a class or attributes of their own, which are not compared"
STATES = "dictionaries with a state beside their items (such as `_metadata`), which is not compared"


class Walk:
    """From what a pickle holds to leaves, within bounds on depth and on names."""

    def __init__(self, where: str, find: Find) -> None:
        self.where = where
        self.find = find
        self.leaves: list[Leaf] = []
        self.spans: dict[str, tuple[str, tuple[int, int]]] = {}
        self.notes: list[str] = []
        self.left = MAX_NAMES

    def add_all(self, content: Any) -> list[Leaf]:
        """Lists what a file holds, whether that is a tree or one value.

        Raises: InputError, with the name of the leaf, for what is neither tensor nor plain.
        """
        items = content.pairs if isinstance(content, Table) else content
        is_tree = isinstance(items, list | tuple) and items
        self.add(content, () if is_tree else (Name(ONLY),))
        return share(self.leaves, self.spans)

    def add(self, value: Any, path: LeafPath) -> None:
        """Lists a value and what it contains.

        Raises: InputError, with the name of the leaf, for what is neither tensor nor plain.
        """
        name = path_text(path)
        self.left -= len(name) + 64
        if len(path) > MAX_DEPTH or len(name) > MAX_NAME or self.left < 0:
            raise _wrong(
                f"{self.where} ({shown(name, 80)})",
                f"at most {MAX_DEPTH} levels and {MAX_NAMES >> 20} MiB of names",
                "more; a pickle may hold one branch many times",
            )
        if isinstance(value, Table):
            self._table(value, path)
        elif isinstance(value, list | tuple) and value:
            for i, item in enumerate(value):
                self.add(item, (*path, Index(i)))
        elif isinstance(value, Call) and value.function not in ("torch.Size", "torch.device"):
            found = tensor_of(value, f"{self.where} ({shown(name)})", self.find)
            self.leaves.append(found.leaf(path))
            if value.function in ATTRIBUTED:
                self.note(ATTRIBUTES)
            self.spans[name] = (found.key, found.span)
        else:
            self.leaves.append(self._plain(value, path, name))

    def note(self, text: str) -> None:
        """Says something about the file, once."""
        if text not in self.notes:
            self.notes.append(text)

    def _table(self, table: Table, path: LeafPath) -> None:
        where = f"{self.where} ({shown(path_text(path))})"
        if table.state is not None:
            self.note(STATES)
        if not table.pairs:
            self.leaves.append(Leaf(path, (), ElementType("dict", 0), Held(b""), ({},)))
        seen: dict[str, object] = {}
        for key, item in table.pairs:
            if type(key) not in (str, int):
                raise _wrong(where, "keys that are texts or whole numbers", type(key).__name__)
            text = key if isinstance(key, str) else str(key) if abs(key) < 1 << 63 else "?"
            if len(text) > MAX_NAME:
                raise _wrong(where, f"keys of at most {MAX_NAME} signs", f"{len(text)}")
            if text in seen:
                raise _wrong(where, "each key once", f"{text!r:.80} twice, as text or as number")
            seen[text] = None
            self.add(item, (*path, Key(text)))

    def _plain(self, value: Any, path: LeafPath, name: str) -> Leaf:
        """A leaf that is no tensor: its type's name and its value."""
        kind, plain = plain_value(value, f"{self.where} ({shown(name)})")
        self.left -= len(plain) if isinstance(plain, str | list) else 0
        return Leaf(path, (), ElementType(kind, 0), Held(b""), (plain,))


def plain_value(value: Any, where: str) -> tuple[str, Any]:
    """The name of a plain value's type, and the value as JSON has it.

    Raises: InputError if it is not plain.
    """
    if value is None:
        return "none", None
    if isinstance(value, bool | int | float | str):
        if (isinstance(value, str) and len(value) > MAX_VALUE) or (
            isinstance(value, int) and value.bit_length() > 2048
        ):
            raise _wrong(where, f"a value of at most {MAX_VALUE} signs", "a longer one")
        return type(value).__name__, value
    if isinstance(value, bytes) and len(value) <= MAX_VALUE // 2:
        return "bytes", value.hex()
    if isinstance(value, list | tuple) and not value:
        return type(value).__name__, []
    if isinstance(value, Global):
        return "name", value.name
    if isinstance(value, Bag) and len(value.items) <= MAX_VALUE // 64:
        items = [plain_value(item, where) for item in value.items if not isinstance(item, Bag)]
        if len(items) == len(value.items):
            return "set", sorted((list(item) for item in items), key=repr)
    if isinstance(value, Call) and value.function == "torch.Size":
        return "torch.Size", list(size_of(value, where))
    if isinstance(value, Call) and value.function == "torch.device":
        texts = [str(part) for part in value.arguments if isinstance(part, str | int)]
        if len(texts) == len(value.arguments) <= 2:
            return "torch.device", ":".join(texts)[:64]
    raise _wrong(where, "a tensor or a plain value", type(value).__name__)


def share(leaves: list[Leaf], spans: dict[str, tuple[str, tuple[int, int]]]) -> list[Leaf]:
    """The leaves, with those marked that lie on the very same bytes."""
    uses: dict[tuple[str, tuple[int, int]], int] = {}
    for span in spans.values():
        uses[span] = uses.get(span, 0) + 1
    return [_shared(leaf, spans, uses) for leaf in leaves]


def _shared(
    leaf: Leaf,
    spans: dict[str, tuple[str, tuple[int, int]]],
    uses: dict[tuple[str, tuple[int, int]], int],
) -> Leaf:
    found = spans.get(leaf.name)
    if found is None or uses[found] < 2 or not leaf.n_elements:
        return leaf
    key, (start, stop) = found
    return Leaf(
        leaf.path, leaf.shape, leaf.element, leaf.storage, leaf.value, leaf.physical,
        shares=f"{key}[{start}:{stop}]", checksum=leaf.checksum,
    )  # fmt: skip


def _wrong(where: str, expected: str, got: str) -> InputError:
    return InputError(f"{where}: expected {expected}, got {got}", hint=HINT)
