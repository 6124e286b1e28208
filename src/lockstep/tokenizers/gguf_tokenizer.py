"""The tokenizer of a GGUF file; its ids are those of llama.cpp.

The library `tokenizers` splits the text; the merges are done here. To build its BPE from a
vocabulary of 150 000 takes it 0.3 s, longer than a start may take, and it has no SentencePiece
whose equal scores merge from the left.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

from lockstep.errors import InputError
from lockstep.tokenizers.merge_order import merge_priority, score_priority
from lockstep.tokenizers.merging import Priority, merge
from lockstep.tokenizers.model_tokenizer import Part, check_unicode, longest_token
from lockstep.tokenizers.pre_tokenizers import LLAMA3_NAMES, number_parts, pre_tokenizer
from lockstep.tokenizers.types import byte_images
from lockstep.tokenizers.vocabulary import (
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    USER_DEFINED,
    Vocabulary,
    read_vocabulary,
)

_CACHED_WORDS = 1 << 16
_LONGEST_CACHED = 64  # a word's characters; longer ones hardly come again
_BLANKS = " \t\n\v\f\r"  # those of C
_HINT = "use a model whose vocabulary has it"


class GGUFTokenizer:
    """Byte-level BPE or SentencePiece, from the metadata of a GGUF file."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        v = self.vocabulary = vocabulary
        self.where = v.where
        self.vocab_size = len(v.pieces)
        self.bos_id, self.eos_id, self.stop_ids = v.bos_id, v.eos_id, v.stop_ids
        self.add_bos, self.unknown_id = v.add_bos, v.unknown_id
        self.last_id = v.eos_id if v.add_eos else None
        self._specials = [(id, v.pieces[id]) for id in v.special_ids]
        self._model = (_ByteLevel if v.model == "gpt2" else _SentencePiece)(v)

    @classmethod
    def read(cls, metadata: Mapping[str, Any], where: str = "model.gguf") -> GGUFTokenizer:
        """The tokenizer in the metadata of a file.

        Raises: InputError if a part is missing, contradicts another, or is of a make that is not
        known.
        """
        return cls(read_vocabulary(metadata, where))

    @property
    def control_names(self) -> list[str]:
        """The pieces that markup may have and a user's text may not."""
        return [piece for id, piece in self._specials if self.is_control(id)]

    def encode(self, text: str) -> list[int]:
        """The ids of a user's text; the names of control tokens in it are plain text.

        Raises: InputError if a character cannot be encoded.
        """
        return self.encode_parts([Part(text)])

    def encode_parts(self, parts: Sequence[Part]) -> list[int]:
        """The ids of a prompt; the names of control tokens count in markup only.

        Raises: InputError if a character cannot be encoded.
        """
        ids: list[int] = []
        first = True
        for piece in self._pieces(parts):
            if isinstance(piece, int):
                ids.append(piece)
            else:
                ids += self._model.encode(piece, first=first)
            first = isinstance(piece, int)
        return ids

    def _pieces(self, parts: Sequence[Part]) -> Iterator[str | int]:
        """Texts and the special tokens between them; neighbouring texts are one."""
        held, strips = "", False
        for part in parts:
            check_unicode(part.text, self.where)
            for piece in self._split(part):
                if isinstance(piece, str):
                    held += piece.lstrip(_BLANKS) if strips and not held else piece
                    continue
                if held:
                    yield held
                held, strips = "", piece in self.vocabulary.strip_ids
                yield piece
        if held:
            yield held

    def _split(self, part: Part) -> list[str | int]:
        """The special tokens in a text, the longest of them first, and what is around them."""
        pieces: list[str | int] = [part.text] if part.text else []
        for id, name in self._specials:
            if name not in part.text or (self.is_control(id) and not part.markup):
                continue
            found: list[str | int] = []
            for piece in pieces:
                if isinstance(piece, int):
                    found.append(piece)
                    continue
                for i, text in enumerate(piece.split(name)):
                    found += [*([id] if i else []), *([text] if text else [])]
            pieces = found
        return pieces

    def token_bytes(self, id: int) -> bytes:
        """What an id stands for; nothing for an id outside the vocabulary."""
        if not 0 <= id < self.vocab_size:
            return b""
        kind, piece = self.vocabulary.kinds[id], self.vocabulary.pieces[id]
        if kind in (CONTROL, UNKNOWN, USER_DEFINED):
            return piece.encode("utf-8")
        if kind == BYTE:
            byte = self.vocabulary.byte_of(id)
            return b"" if byte is None else bytes((byte,))
        return self._model.spelled(piece) if kind == NORMAL else b""

    @cached_property
    def most_bytes(self) -> int | None:
        """How many bytes of a text one token can stand for at most; None if any number of them."""
        if self.vocabulary.strip_ids:
            return None
        if self.vocabulary.model == "gpt2":
            return longest_token(self)
        # A text may spell a blank as the pieces do, and 4 bytes are the longest unknown character.
        return max(4, len(SPACE.encode()) * longest_token(self))

    def is_control(self, id: int) -> bool:
        """Whether an id is a control token, which no reader is shown."""
        return 0 <= id < self.vocab_size and self.vocabulary.kinds[id] in (CONTROL, UNKNOWN)


class _ByteLevel:
    """BPE over bytes that are spelled as printable characters."""

    def __init__(self, v: Vocabulary) -> None:
        self._v = v
        self._pre_tokenizer = pre_tokenizer(v.pre, v.where)
        self._whole_words = v.pre in LLAMA3_NAMES
        self._bytes = {image: bytes((byte,)) for byte, image in byte_images().items()}
        self._cached = lru_cache(_CACHED_WORDS)(self._word)

    @cached_property
    def _priority(self) -> Priority:
        return merge_priority(self._v)  # not before it is needed, as it takes a while

    def encode(self, text: str, *, first: bool) -> list[int]:
        """The ids of a text between special tokens."""
        parts = number_parts(text, "[0-9]") if self._v.pre == "superbpe" else (text,)
        ids: list[int] = []
        for part in parts:
            for word, _ in self._pre_tokenizer.pre_tokenize_str(part):
                ids += self._cached(word) if len(word) <= _LONGEST_CACHED else self._word(word)
        return ids

    def _word(self, word: str) -> list[int]:
        if self._whole_words and (id := self._v.ids.get(word)) is not None:
            return [id]
        return [self._id(part, word) for part in merge(word, self._priority)]

    def _id(self, part: str, word: str) -> int:
        id = self._v.ids.get(part)
        if id is None:
            text = self.spelled(word).decode("utf-8", "replace")
            raise InputError(
                f"{self._v.where}: expected text of its alphabet, got {text!r:.60}", hint=_HINT
            )
        return id

    def spelled(self, piece: str) -> bytes:
        """The bytes of a piece; characters that stand for none are themselves."""
        return b"".join(self._bytes.get(c) or c.encode("utf-8") for c in piece)


class _SentencePiece:
    """Merges by score over characters; what is left over falls back to bytes."""

    def __init__(self, v: Vocabulary) -> None:
        self._v = v
        self._priority = score_priority(v)
        self._never = frozenset(v.of_kinds(CONTROL, UNKNOWN, BYTE))
        self._byte_ids = [v.ids.get(f"<0x{byte:02X}>") for byte in range(256)]
        joined = "\0".join(v.pieces)
        # Where no piece has a blank inside, none reaches over the beginning of a word.
        inside = re.search(rf"{SPACE}(?<=[^{SPACE}\0]{SPACE})", joined)
        one_text = inside or joined.count("\0") >= len(v.pieces)
        self._words = None if one_text else re.compile(rf"{SPACE}*[^{SPACE}]+|{SPACE}+$")
        self._cached = lru_cache(_CACHED_WORDS)(self._word)

    def encode(self, text: str, *, first: bool) -> list[int]:
        """The ids of a text between special tokens."""
        prefix = SPACE if first and self._v.add_space_prefix else ""
        text = prefix + text.replace(" ", SPACE)
        if self._words is None:
            return self._word(text)
        ids: list[int] = []
        for word in self._words.findall(text):
            ids += self._cached(word) if len(word) <= _LONGEST_CACHED else self._word(word)
        return ids

    def _word(self, word: str) -> list[int]:
        return [id for part in merge(word, self._priority) for id in self._ids(part)]

    def _ids(self, part: str) -> Sequence[int]:
        id = self._v.ids.get(part)
        if id is not None and id not in self._never:
            return (id,)
        ids = [self._byte_ids[byte] for byte in part.encode("utf-8")]
        known = [id for id in ids if id is not None]
        if len(known) == len(ids):
            return known
        if self._v.unknown_id is None:
            raise InputError(
                f"{self._v.where}: expected text of its alphabet, got {part!r:.60}", hint=_HINT
            )
        return (self._v.unknown_id,)

    def spelled(self, piece: str) -> bytes:
        """The bytes of a piece."""
        return piece.replace(SPACE, " ").encode("utf-8")
