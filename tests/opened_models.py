"""A small model that tests open, as a directory and as a file, and homes that have its programs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import tokenizers
from family_harness import drawn_parameters
from gguf_models import convertible, write_gguf

from lockstep.families import FAMILIES, write_parameters
from lockstep.formats.hf_directory import write_hf_directory

FAMILY = FAMILIES["qwen3"]
CONFIG = convertible(FAMILY, FAMILY.TINY)
PRE = "gpt-2"


def letters_of(vocab: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The ids of so many pieces, and the one merge that makes the last of them."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())[: vocab - 1]
    pieces = [*letters, letters[0] + letters[1]]
    return {piece: id for id, piece in enumerate(pieces)}, [(letters[0], letters[1])]


def spelled(vocab: int) -> Callable[[gguf.GGUFWriter], None]:
    """Adds a byte-level tokenizer of so many tokens."""

    def add(writer: gguf.GGUFWriter) -> None:
        pieces, merges = letters_of(vocab)
        writer.add_tokenizer_pre(PRE)
        writer.add_token_list(list(pieces))
        writer.add_token_merges([" ".join(pair) for pair in merges])

    return add


def model_folder(made: Path) -> Path:
    """The model as a Hugging Face directory and as the GGUF file that is made of it."""
    hf = write_parameters(FAMILY.weights(CONFIG), drawn_parameters(FAMILY, CONFIG), "hf")
    write_hf_directory(made / "hf", FAMILY.to_hf(CONFIG), hf)
    write_gguf(FAMILY, CONFIG, made / "model.gguf", hf, spelled(CONFIG.vocab))
    return made


def with_builds(home: Path, shared_home: Path) -> Path:
    """A home without weights; it has the programs that other tests have built."""
    (home / "build").mkdir()
    for suffix in (".so", ".sha256"):
        for file in (shared_home / "build").glob(f"*{suffix}"):
            (home / "build" / file.name).hardlink_to(file)
    return home
