"""Transformers asked about a directory that it opens by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

from lockstep.ir import Array
from lockstep.oracle.transformers_model import refusing


@dataclass(frozen=True)
class DirectoryAnswers:
    """Greedy tokens, logits after each token of a text, and the ids of some texts.

    Its class for some families normalises text otherwise than tokenizer.json says (NFC for Qwen2):
    texts of which this makes others have no ids here.
    Shapes: logits (T, V)
    """

    tokens: list[int]
    logits: Array
    ids: list[list[int] | None]


def ask_directory(
    path: Path, prompt: Sequence[int], text: Sequence[int], max_tokens: int, texts: Sequence[str]
) -> DirectoryAnswers:
    """What transformers' own classes make of a directory, in float32.

    Raises: GateError if they cannot open it.
    """
    with refusing(path.name):
        model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    with torch.no_grad():
        made = model.generate(
            torch.tensor([list(prompt)]), max_new_tokens=max_tokens, do_sample=False
        )
        logits = model(torch.tensor([list(text)])).logits[0].numpy()
    stated = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    return DirectoryAnswers(
        tokens=made[0, len(prompt) :].tolist(),
        logits=logits,
        ids=[
            tokenizer(text, add_special_tokens=False)["input_ids"]
            if _normalised(tokenizer.backend_tokenizer, text) == _normalised(stated, text)
            else None
            for text in texts
        ],
    )


def _normalised(library: Any, text: str) -> str:
    """The text before it is split."""
    normaliser = library.normalizer
    return text if normaliser is None else str(normaliser.normalize_str(text))
