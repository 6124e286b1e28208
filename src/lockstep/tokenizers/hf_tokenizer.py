"""The tokenizer of a Hugging Face directory; its ids are those of transformers."""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from lockstep.errors import InputError
from lockstep.formats.json_text import MAX_BYTES, read_json_object
from lockstep.tokenizers.model_tokenizer import Part, check_unicode, longest_token
from lockstep.tokenizers.pre_tokenizers import counted_digits, number_parts
from lockstep.tokenizers.types import byte_images, library_ids
from lockstep.tokenizers.vocabulary import ENDINGS

_HINT = "download the model again"
# What a chat template may write by these names.
NAMED_TOKENS = tuple(f"{kind}_token" for kind in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
_AFFIX = re.compile(rb'"(continuing_subword_prefix|end_of_word_suffix)"\s*:\s*"[^"]')
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
# Ways to split a text that drop a part of it.
_DROPPING = ("Removed", "Whitespace", "WhitespaceSplit", "BertPreTokenizer", "CharDelimiterSplit")


class HFTokenizer:
    """A tokenizer.json, run by the library it is for, and the files beside it."""

    def __init__(self, directory: Path) -> None:
        """Opens a directory.

        Raises: InputError if tokenizer.json or a file beside it is missing, damaged or of a make
        whose ids cannot be spelled one by one.
        """
        self.where = str(directory / "tokenizer.json")
        self._library = _opened(directory)
        self._lock = threading.Lock()  # around the setting of the library that each call needs
        added = self._library.get_added_tokens_decoder()
        self._added = {id: token.content for id, token in added.items()}
        self._control = {id for id, token in added.items() if token.special}
        n_tokens: int = self._library.get_vocab_size(with_added_tokens=True)
        self.vocab_size = max(n_tokens, *(id + 1 for id in self._added), 0)
        self._byte_level = _is_byte_level(self._library, self.where)
        self._begins_each = _begins_each_text(self._library)
        self._digits = _counted_digits(self._library)
        self._byte_of = {image: bytes((byte,)) for byte, image in byte_images().items()}
        # Without the whole alphabet the library drops characters and says nothing.
        self._partial = self._byte_level and any(
            self._library.token_to_id(image) is None for image in self._byte_of
        )
        config = tokenizer_settings(directory)
        named = {key: token_text(config.get(f"{key}_token")) for key in ("bos", "eos", "unk")}
        for key, name in named.items():
            check_unicode(name or "", f"{directory / 'tokenizer_config.json'} ({key}_token)")
        self.bos_id = self._id_of(named["bos"])
        self.eos_id = self._id_of(named["eos"])
        self.unknown_id = self._id_of(named["unk"])
        self.add_bos = self._adds_bos(config)
        self.last_id = self._last_id(config)
        self.stop_ids = self._stops(directory)

    def _id_of(self, name: str | None) -> int | None:
        found: int | None = None if name is None else self._library.token_to_id(name)
        return found

    def _adds_bos(self, config: dict[str, Any]) -> bool:
        stated = config.get("add_bos_token")
        if isinstance(stated, bool):
            return stated and self.bos_id is not None
        ids = self._library.encode("a", add_special_tokens=True).ids
        return bool(ids) and ids[0] == self.bos_id

    def _last_id(self, config: dict[str, Any]) -> int | None:
        """What a text ends with: what tokenizer.json puts there, which need not be the end token.

        Source: SpecialVocab of https://github.com/ggml-org/llama.cpp gguf-py/gguf/vocab.py
        """
        stated = config.get("add_eos_token")
        if stated is False:
            return None
        plain, whole = (self._library.encode("a", add_special_tokens=x).ids for x in (False, True))
        if plain and whole[-1] != plain[-1]:
            last: int = whole[-1]
            return last
        return self.eos_id if stated is True else None

    def _stops(self, directory: Path) -> frozenset[int]:
        """The end tokens, those of the configuration, and what ends a turn."""
        found = [self.eos_id, self.last_id, *(self._library.token_to_id(name) for name in ENDINGS)]
        for file in ("generation_config.json", "config.json"):
            stated = _optional(directory / file).get("eos_token_id")
            ids = stated if isinstance(stated, list) else [stated]
            for id in ids:
                if id is not None and type(id) is not int:
                    raise InputError(
                        f"{directory / file}, eos_token_id: expected ids, got {stated!r:.60}",
                        hint=_HINT,
                    )
            found += ids
        return frozenset(id for id in found if id is not None)

    @property
    def document(self) -> str:
        """The text of tokenizer.json, as the library writes it."""
        text: str = self._library.to_str()
        return text

    @property
    def control_names(self) -> list[str]:
        """The pieces that markup may have and a user's text may not."""
        return [self._added[id] for id in self._control]

    def encode(self, text: str) -> list[int]:
        """The ids of a user's text; the names of control tokens in it are plain text.

        Raises: InputError if a character cannot be encoded.
        """
        return self._encoded(text, markup=False)

    def encode_parts(self, parts: Sequence[Part]) -> list[int]:
        """The ids of a prompt; the names of control tokens count in markup only.

        Raises: InputError if a character cannot be encoded.
        """
        if len({part.markup for part in parts}) < 2:
            text = "".join(part.text for part in parts)
            return self._encoded(text, markup=bool(parts) and parts[0].markup)
        ids: list[int] = []
        for i, piece in enumerate(self._pieces(parts)):
            if isinstance(piece, int):
                ids.append(piece)
            else:
                begins = i == 0 or self._begins_each
                ids += self._encoded(piece, markup=False) if begins else self._inside(piece)
        return ids

    def _pieces(self, parts: Sequence[Part]) -> Iterator[str | int]:
        """Texts and the control tokens between them; neighbouring texts are one."""
        names = {self._added[id]: id for id in self._control}
        escaped = map(re.escape, sorted(names, key=len, reverse=True))
        pattern = re.compile("|".join(escaped) or r"(?!)")
        held = ""
        for part in parts:
            at = 0
            for found in pattern.finditer(part.text) if part.markup else ():
                if before := held + part.text[at : found.start()]:
                    yield before
                yield names[found[0]]
                held, at = "", found.end()
            held += part.text[at:]
        if held:
            yield held

    def _inside(self, text: str) -> list[int]:
        """The ids of a text that does not begin the prompt, and so gets no blank in front."""
        before = self._encoded("\n", markup=False)
        ids = self._encoded("\n" + text, markup=False)
        joined = ids[: len(before)] != before
        return self._encoded(text, markup=False) if joined else ids[len(before) :]

    def _encoded(self, text: str, *, markup: bool) -> list[int]:
        check_unicode(text, self.where)
        with self._lock:
            self._library.encode_special_tokens = not markup
            parts = number_parts(text, self._digits) if self._digits else (text,)
            ids = [id for part in parts for id in library_ids(self._library, part)]
        if self._partial and b"".join(map(self.token_bytes, ids)) != text.encode("utf-8"):
            raise InputError(
                f"{self.where}: expected text of its alphabet, got {text!r:.60}",
                hint="use a model whose vocabulary has it",
            )
        return ids

    def token_bytes(self, id: int) -> bytes:
        """What an id stands for; nothing for an id outside the vocabulary."""
        piece = self._library.id_to_token(id) if 0 <= id < self.vocab_size else None
        if piece is None:
            return b""
        if id in self._added:
            return bytes(self._added[id], "utf-8")
        if self._byte_level:
            return b"".join(self._byte_of.get(c) or c.encode("utf-8") for c in piece)
        if byte := _BYTE.fullmatch(piece):
            return bytes.fromhex(byte[1])
        spelled: str = piece
        return spelled.replace("▁", " ").encode("utf-8")

    @cached_property
    def most_bytes(self) -> int | None:
        """How many bytes of a text one token can stand for at most; None if any number of them."""
        document = json.loads(self.document)
        shrinking = _shrinking(document["normalizer"])
        takes_blanks = any(t["lstrip"] or t["rstrip"] for t in document["added_tokens"])
        fuses = document["model"].get("unk_token") is not None and not self._has_all_bytes
        kept = json.dumps(document["pre_tokenizer"])
        drops = any(f'"{x}"' in kept for x in _DROPPING)
        if shrinking is None or takes_blanks or fuses or drops:
            return None
        blank = 1 if self._byte_level else len("▁".encode())  # how a text may spell a blank, too
        return shrinking * blank * longest_token(self)

    @property
    def _has_all_bytes(self) -> bool:
        """Whether no character is unknown."""
        fallback = all(self._library.token_to_id(f"<0x{b:02X}>") is not None for b in range(256))
        return self._byte_level or fallback

    def is_control(self, id: int) -> bool:
        """Whether an id is a control token, which no reader is shown."""
        return id in self._control


def _opened(directory: Path) -> Any:
    path = directory / "tokenizer.json"
    if not path.is_file():
        beside = "tokenizer.model" if (directory / "tokenizer.model").exists() else "none"
        raise InputError(
            f"{path}: expected the tokenizer of the model, got {beside}",
            hint="open and save it once with transformers' AutoTokenizer, which writes this file",
        )
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(
                f"{path}: expected at most {MAX_BYTES} bytes, got more",
                hint="check that this is the file you mean",
            )
        document = path.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"{path}: cannot be read: {reason}", hint="check its permissions"
        ) from error
    # By a prefix that is longer than a piece the library ends the process.
    if found := _AFFIX.search(document):
        raise InputError(
            f"{path}: expected pieces that are spelled alike wherever they stand, "
            f"got {found[1].decode()}",
            hint="use a model whose tokenizer is byte-level BPE or SentencePiece",
        )
    library = _parsed(document, path)
    if getattr(library.model, "dropout", None):
        raise InputError(
            f"{path}: expected merges that are the same each time, got dropout "
            f"{library.model.dropout:g}",
            hint="set model.dropout to null, as a model is run without it",
        )
    library.no_truncation()  # which a training may leave in the file; transformers does so, too
    library.no_padding()
    return library


def _parsed(document: bytes, path: Path) -> Any:
    try:
        return tokenizers.Tokenizer.from_buffer(document)
    except BaseException as error:  # bare Exception for any damage, and panics of Rust
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(
            f"{path}: expected a tokenizer.json, got: {error!s:.160}", hint=_HINT
        ) from error


def _shrinking(normalizer: Any) -> int | None:
    """How many bytes of a text one byte of the normalised text can stand for; None if unknown."""
    if normalizer is None:
        return 1
    kind = normalizer["type"]
    if kind == "Sequence":
        found = [_shrinking(each) for each in normalizer["normalizers"]]
        factors = [factor for factor in found if factor is not None]
        return math.prod(factors) if len(factors) == len(found) else None
    if kind == "Replace" and normalizer["pattern"] == {"String": " "} and normalizer["content"]:
        return 1
    # Of 9 bytes of Hangul come 3, of the 3 of a Kelvin sign 1, of the 4 of a styled letter 1.
    return {"Prepend": 1, "NFD": 3, "NFC": 3, "NFKC": 4}.get(kind)


def _is_byte_level(library: Any, where: str) -> bool:
    """Whether pieces spell bytes as characters, and not blanks as SentencePiece does.

    Raises: InputError if they do neither.
    """
    decoder = library.decoder
    stated = "" if decoder is None else decoder.__getstate__().decode("utf-8")
    if '"ByteLevel"' in stated:
        return True
    if any(f'"{name}"' in stated for name in ("ByteFallback", "Metaspace")):
        return False
    kind = json.loads(stated or '{"type": "none"}').get("type")
    raise InputError(
        f"{where}: expected a byte-level or SentencePiece tokenizer, got the decoder {kind}",
        hint="use a model that generates text",
    )


def _begins_each_text(library: Any) -> bool:
    """Whether a text behind a token gets the blank in front, too, that the first one gets."""
    steps = [step for step in (library.normalizer, library.pre_tokenizer) if step is not None]
    stated = " ".join(step.__getstate__().decode("utf-8") for step in steps)
    return any(f'"{name}"' in stated for name in ("Prepend", "always"))


def _counted_digits(library: Any) -> str | None:
    """Which digits are split into threes from the end of a number, where no step is before that."""
    step = library.pre_tokenizer
    stated = "" if step is None else step.__getstate__().decode("utf-8")
    return counted_digits(stated) if library.normalizer is None else None


def _optional(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.exists() else {}


def tokenizer_settings(directory: Path) -> dict[str, Any]:
    """What tokenizer_config.json says, and which tokens special_tokens_map.json names instead.

    That counts only beside a file without added_tokens_decoder, as in transformers.
    Source: tokenization_utils_base.py of transformers, PreTrainedTokenizerBase._from_pretrained.

    Raises: InputError if one of the two is damaged.
    """
    config = _optional(directory / "tokenizer_config.json")
    if "added_tokens_decoder" in config:
        return config
    named = _optional(directory / "special_tokens_map.json")
    return config | {key: named[key] for key in NAMED_TOKENS if key in named}


def token_text(stated: Any) -> str | None:
    """The text of a token in tokenizer_config.json, which is a text or an object with one."""
    text = stated.get("content") if isinstance(stated, dict) else stated
    return text if isinstance(text, str) else None
