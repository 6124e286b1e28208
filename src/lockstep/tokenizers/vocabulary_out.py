"""A vocabulary as other programs read it: GGUF metadata, tokenizer.json and what lies beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models

from lockstep.errors import UsageError
from lockstep.tokenizers.pre_tokenizers import LLAMA3_NAMES, pre_tokenizer
from lockstep.tokenizers.vocabulary import CONTROL, USER_DEFINED, Vocabulary


def gguf_tokenizer_metadata(
    vocabulary: Vocabulary, chat_template: str | None = None
) -> dict[str, Any]:
    """The keys `tokenizer.*` of a GGUF file.

    Where there is no beginning token the end token is named as it, because llama.cpp would
    otherwise take token 11; nothing is put before a text.
    """
    v = vocabulary
    if v.model == "llama" and not v.scores:
        raise UsageError(
            f"{v.where}: expected SentencePiece with scores, got one with merges: GGUF has scores",
            hint="convert with llama.cpp, which reads tokenizer.model",
        )
    found: dict[str, Any] = {
        "tokenizer.ggml.model": v.model,
        "tokenizer.ggml.pre": v.pre,
        "tokenizer.ggml.tokens": list(v.pieces),
        "tokenizer.ggml.token_type": np.frombuffer(v.kinds, np.uint8).astype(np.int32),
    }
    if v.scores:
        found["tokenizer.ggml.scores"] = np.array(v.scores, np.float32)
    if v.merges:
        found["tokenizer.ggml.merges"] = list(v.merges)
    bos_id = v.eos_id if v.bos_id is None else v.bos_id
    for key, id in (("bos", bos_id), ("eos", v.eos_id), ("unknown", v.unknown_id)):
        if id is not None:
            found[f"tokenizer.ggml.{key}_token_id"] = id
    found["tokenizer.ggml.add_bos_token"] = v.add_bos
    found["tokenizer.ggml.add_eos_token"] = v.add_eos
    if v.model == "llama":
        found["tokenizer.ggml.add_space_prefix"] = v.add_space_prefix
    if chat_template is not None:
        found["tokenizer.chat_template"] = chat_template
    return found


def hf_tokenizer_document(vocabulary: Vocabulary) -> str:
    """The text of tokenizer.json for a byte-level BPE.

    Raises: UsageError for a vocabulary of another make.
    """
    v = vocabulary
    if v.model != "gpt2":
        raise UsageError(
            f"{v.where}: expected byte-level BPE, got {v.model}: tokenizer.json is not written "
            "of SentencePiece",
            hint="export to gguf, which keeps it as it is",
        )
    added = [id for id in range(len(v.pieces)) if v.kinds[id] in (CONTROL, USER_DEFINED)]
    plain = {piece: id for piece, id in v.ids.items() if v.kinds[id] not in (CONTROL, USER_DEFINED)}
    merges = [(left, right) for left, _, right in (m.partition(" ") for m in v.merges)]
    # Pieces that are added are in the table too, so that ids need not be in one run.
    table = plain | {v.pieces[id]: id for id in added}
    built = tokenizers.Tokenizer(
        models.BPE(vocab=table, merges=merges, ignore_merges=v.pre in LLAMA3_NAMES)
    )
    built.pre_tokenizer = pre_tokenizer(v.pre, v.where)
    built.decoder = decoders.ByteLevel()
    tokens = [
        AddedToken(v.pieces[id], normalized=False, special=v.kinds[id] == CONTROL) for id in added
    ]
    built.add_tokens([token for token in tokens if not token.special])
    built.add_special_tokens([token for token in tokens if token.special])
    document: str = built.to_str()
    return document


def hf_tokenizer_config(
    vocabulary: Vocabulary, context: int, chat_template: str | None = None
) -> Mapping[str, object]:
    """tokenizer_config.json: which class reads the tokenizer, and what its tokens mean."""
    v = vocabulary
    config: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": v.add_bos,
        "bos_token": None if v.bos_id is None else v.pieces[v.bos_id],
        "eos_token": None if v.eos_id is None else v.pieces[v.eos_id],
    }
    if chat_template is not None:
        config["chat_template"] = chat_template
    return config
