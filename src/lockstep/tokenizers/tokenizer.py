"""A trained tokenizer: text to ids and back, exactly."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from lockstep.errors import EnvironmentLacks, InputError, UsageError
from lockstep.tokenizers.model_tokenizer import Part, longest_token
from lockstep.tokenizers.pre_tokenizers import (
    counted_digits,
    known_pre_tokenizers,
    number_parts,
)
from lockstep.tokenizers.types import (
    KINDS,
    PRE_TOKENIZERS,
    Kind,
    PreTokenizer,
    alphabet,
    byte_images,
    check_text,
    library_ids,
    spelling,
)

FILE = "tokenizer.json"
_HINT = "restore the tokenizer of this run, or train it again"


class Tokenizer:
    """A byte-level BPE with one id for each control tag and one for the end of a row.

    Text from users keeps its letters: in `encode`, `<eos>` is five characters. In `encode_row`,
    which is for rows of a corpus, it is the end token. Tags are single ids in both.
    """

    def __init__(self, document: str, *, where: str = FILE) -> None:
        self.document = document
        self.where = where
        self._rows = _built(document, where)
        self._text = _built(document, where)
        self._text.encode_special_tokens = True
        added = sorted(self._rows.get_added_tokens_decoder().items())
        specials = [(id_, token.content) for id_, token in added if token.special]
        if len(specials) != 1:
            raise InputError(
                f"{where}: expected one special token, got {len(specials)}", hint=_HINT
            )
        self.eos_id: int = specials[0][0]
        self.eos: str = specials[0][1]
        self._tag_ids = {token.content: id_ for id_, token in added if not token.special}
        self.vocab_size: int = self._rows.get_vocab_size()
        self.bos_id: int | None = None
        self.last_id: int | None = None
        self.unknown_id: int | None = None
        self.stop_ids = frozenset((self.eos_id,))
        self.add_bos = False
        self._byte_of = {image: bytes((byte,)) for byte, image in byte_images().items()}
        self.kind, self.pre_tokenizer = _recognised(document, where)
        self._digits = counted_digits(json.dumps(json.loads(document)["pre_tokenizer"]))
        self._check_ids()

    def _check_ids(self) -> None:
        ids = sorted(self._rows.get_vocab().values())
        if ids != list(range(self.vocab_size)):
            raise InputError(f"{self.where}: expected ids 0, 1, 2, ..., got gaps", hint=_HINT)

    @property
    def tags(self) -> tuple[str, ...]:
        """The control tags in the order of their ids."""
        return tuple(self._tag_ids)

    @property
    def sha256(self) -> str:
        """The hash of tokenizer.json, by which a run knows its tokenizer."""
        return hashlib.sha256(self.document.encode("utf-8")).hexdigest()

    @property
    def pieces(self) -> list[str]:
        """The piece of each id, as the vocabulary spells it."""
        return [self._rows.id_to_token(i) for i in range(self.vocab_size)]

    @property
    def merges(self) -> list[tuple[str, str]]:
        """The merges in their order."""
        pairs = json.loads(self.document)["model"]["merges"]
        return [(left, right) for left, right in pairs]

    def token_id(self, tag: str) -> int:
        """The id of a control tag or of the end token.

        Raises: UsageError if the vocabulary has no such tag.
        """
        found = self.eos_id if tag == self.eos else self._tag_ids.get(tag)
        if found is None:
            raise UsageError(
                f"{self.where}: expected a control tag of this tokenizer, got {tag!r:.60}",
                hint=f"choose one of {' '.join(self._tag_ids)}",
            )
        return found

    def encode(self, text: str, *, where: str = "text") -> list[int]:
        """The ids of text from a user; the name of the end token in it is plain text.

        Raises: InputError naming line, column and character outside the alphabet.
        """
        check_text(text, self.kind, where)
        return self._ids(self._text, text)

    def encode_row(self, row: str, *, where: str = "row") -> list[int]:
        """The ids of a row of a corpus; the end token is one id.

        Raises: InputError naming line, column and character outside the alphabet.
        """
        check_text(row, self.kind, where)
        return self._ids(self._rows, row)

    def _ids(self, library: Any, text: str) -> list[int]:
        parts = number_parts(text, self._digits) if self._digits else (text,)
        return [id for part in parts for id in library_ids(library, part)]

    def encode_parts(self, parts: Sequence[Part]) -> list[int]:
        """The ids of a prompt; the end token is one id in markup only.

        Raises: InputError naming line, column and character outside the alphabet.
        """
        encoded = [(self.encode_row if part.markup else self.encode)(part.text) for part in parts]
        return [id_ for ids in encoded for id_ in ids]

    @property
    def control_names(self) -> tuple[str, ...]:
        """The pieces that markup may have and a user's text may not."""
        return (self.eos,)

    def is_control(self, id: int) -> bool:
        """Whether an id is the end token."""
        return id == self.eos_id

    def token_bytes(self, id: int) -> bytes:
        """What an id stands for; nothing for an id outside the vocabulary."""
        if not 0 <= id < self.vocab_size:
            return b""
        piece = self._rows.id_to_token(id)
        if id == self.eos_id or piece in self._tag_ids:
            return bytes(piece, "utf-8")
        return b"".join(self._byte_of[character] for character in piece)

    @cached_property
    def most_bytes(self) -> int:
        """How many bytes of a text one token can stand for at most."""
        return longest_token(self)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids; bytes that are not UTF-8 become U+FFFD.

        Raises: InputError if an id is outside the vocabulary.
        """
        known = [int(id_) for id_ in ids]
        if wrong := [id_ for id_ in known if not 0 <= id_ < self.vocab_size]:
            raise InputError(
                f"{self.where}: expected ids below {self.vocab_size}, got {wrong[0]}",
                hint="use the tokenizer that made these ids",
            )
        text: str = self._rows.decode(known, skip_special_tokens=False)
        return text

    def save(self, directory: Path) -> Path:
        """Writes tokenizer.json in one rename.

        Raises: EnvironmentLacks if the disk refuses; an older file is then as it was.
        """
        path = Path(directory) / FILE
        try:
            with tempfile.NamedTemporaryFile(
                dir=path.parent, prefix=f".{FILE}.", suffix=".tmp", delete=False
            ) as file:
                try:
                    file.write(self.document.encode("utf-8"))
                    file.flush()
                    os.fsync(file.fileno())
                    os.chmod(file.name, 0o644)
                    os.replace(file.name, path)
                except BaseException:
                    os.unlink(file.name)
                    raise
        except OSError as error:
            raise EnvironmentLacks(
                f"{path}: expected to write it, got: {error.strerror}",
                hint="free some space, or choose a writable directory",
            ) from error
        return path

    @classmethod
    def load(cls, directory: Path, *, expect_sha256: str | None = None) -> Tokenizer:
        """Reads tokenizer.json, the file itself or the directory that holds it.

        Raises: InputError if it is missing, damaged, of another make, or another run's.
        """
        path = Path(directory)
        path = path / FILE if path.is_dir() else path
        try:
            document = path.read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise InputError(
                f"{path}: expected a readable tokenizer, got: {reason}", hint=_HINT
            ) from error
        tokenizer = cls(document, where=str(path))
        if expect_sha256 is not None and tokenizer.sha256 != expect_sha256:
            raise InputError(
                f"{path}: expected the tokenizer with SHA-256 {expect_sha256[:16]}..., "
                f"got {tokenizer.sha256[:16]}...",
                hint="use the tokenizer of this run; another one gives the ids other meanings",
            )
        return tokenizer


def _built(document: str, where: str) -> Any:
    try:
        return tokenizers.Tokenizer.from_str(document)
    except Exception as error:  # the library raises bare Exception for any damage
        raise InputError(
            f"{where}: expected a tokenizer.json, got: {error!s:.160}", hint=_HINT
        ) from error


def _recognised(document: str, where: str) -> tuple[Kind, PreTokenizer]:
    """Which kind of vocabulary and which splitting a document holds."""
    parts = json.loads(document)
    splitting, model = parts.get("pre_tokenizer"), parts.get("model", {})
    names = [n for n in PRE_TOKENIZERS if splitting in map(spelling, known_pre_tokenizers(n))]
    if model.get("type") != "BPE" or parts.get("normalizer") is not None or not names:
        raise InputError(
            f"{where}: expected byte-level BPE split as {', '.join(PRE_TOKENIZERS)}, "
            "got another make",
            hint="train a tokenizer with `lockstep tokenizer train`",
        )
    vocabulary: Sequence[str] = model["vocab"].keys()
    kinds = [kind for kind in KINDS if set(alphabet(kind)) <= set(vocabulary)]
    if not kinds:
        raise InputError(f"{where}: expected a whole alphabet, got a part of one", hint=_HINT)
    return kinds[-1], names[0]
