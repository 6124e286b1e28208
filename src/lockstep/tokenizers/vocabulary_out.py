"""A vocabulary as other programs read it: GGUF metadata, tokenizer.json and what lies beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, processors

from lockstep.errors import UsageError
from lockstep.tokenizers.merge_order import merges_of, scores_of
from lockstep.tokenizers.pre_tokenizers import LLAMA3_NAMES, pre_tokenizer
from lockstep.tokenizers.vocabulary import (
    ALL_ENDS,
    CONTROL,
    ENDINGS,
    SPACE,
    UNKNOWN,
    USER_DEFINED,
    Vocabulary,
)

_NAMED = (CONTROL, USER_DEFINED, UNKNOWN)  # found in a text before it is split
_END_KEYS = ("eot", "eom")  # besides that of the end token
_METASPACES = {
    "first": "one in front of the first text only, if it has none",
    "always": "one in front of each text that has none",
}


def gguf_tokenizer_metadata(
    vocabulary: Vocabulary, templates: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """The keys `tokenizer.*` of a GGUF file; `templates` are those of chats by their names.

    Where there is no beginning token the end token is named as it, because llama.cpp would
    otherwise take token 11; nothing is put before a text. Of the tokens that end an answer it has
    keys for three, and knows others by name; where that is not all, they are listed.
    Raises: UsageError if scores cannot say how pieces merge, or where blanks are put.
    """
    v = vocabulary
    if v.metaspace != "never":
        raise UsageError(
            f"{v.where}: expected a blank in front of each text or of none, as GGUF can say, got "
            f"{_METASPACES[v.metaspace]}",
            hint="export with --to hf or --to c, which keep it",
        )
    scores = v.scores or (scores_of(v) if v.model == "llama" else ())
    found: dict[str, Any] = {
        "tokenizer.ggml.model": v.model,
        "tokenizer.ggml.pre": v.pre,
        "tokenizer.ggml.tokens": list(v.pieces),
        "tokenizer.ggml.token_type": np.frombuffer(v.kinds, np.uint8).astype(np.int32),
    }
    if scores:
        found["tokenizer.ggml.scores"] = np.array(scores, np.float32)
    if v.merges and v.model == "gpt2":
        found["tokenizer.ggml.merges"] = list(v.merges)
    bos_id = v.eos_id if v.bos_id is None else v.bos_id
    unnamed = _unnamed_ends(v)
    ends = zip(_END_KEYS, unnamed, strict=False)
    if len(unnamed) > len(_END_KEYS):
        listed = [*([] if v.eos_id is None else [v.eos_id]), *unnamed]
        found[f"tokenizer.ggml.{ALL_ENDS}"] = np.array(listed, np.int32)
    for key, id in (("bos", bos_id), ("eos", v.eos_id), ("unknown", v.unknown_id), *ends):
        if id is not None:
            found[f"tokenizer.ggml.{key}_token_id"] = id
    found["tokenizer.ggml.add_bos_token"] = v.add_bos
    found["tokenizer.ggml.add_eos_token"] = v.add_eos
    if v.model == "llama":
        found["tokenizer.ggml.add_space_prefix"] = v.add_space_prefix
    return found | _gguf_templates(templates)


def unread_ends(vocabulary: Vocabulary) -> list[int]:
    """The tokens that end an answer which llama.cpp has no key for, and does not know by name."""
    return _unnamed_ends(vocabulary)[len(_END_KEYS) :]


def _unnamed_ends(v: Vocabulary) -> list[int]:
    """What ends an answer besides the end token, and is not one of the names that do so."""
    known = {v.eos_id, *map(v.ids.get, ENDINGS)}
    return sorted(v.stop_ids.intersection(v.ids.values()) - known)


def _gguf_templates(templates: Mapping[str, str]) -> dict[str, Any]:
    """The chat templates, under names as llama.cpp's converter spells them.

    Source: GGUFWriter.add_chat_template of the package gguf.
    """
    found: dict[str, Any] = {}
    for name, text in templates.items():
        key = re.sub("[^A-Za-z0-9]", "_", name)
        found["tokenizer.chat_template" + ("" if name == "default" else f".{key}")] = text
    more = [key.rpartition(".")[2] for key in found if key != "tokenizer.chat_template"]
    return found | ({"tokenizer.chat_templates": more} if more else {})


def hf_tokenizer_document(vocabulary: Vocabulary) -> str:
    """The text of tokenizer.json.

    Raises: UsageError if a list of merges cannot say how pieces merge.
    """
    v = vocabulary
    built = _byte_level(v) if v.model == "gpt2" else _sentence_piece(v)
    # They are in the table of pieces, too, so that their ids need not be in one run.
    tokens = [
        AddedToken(piece, normalized=False, special=v.kinds[id] != USER_DEFINED)
        for id, piece in enumerate(v.pieces)
        if v.kinds[id] in _NAMED
    ]
    built.add_tokens([token for token in tokens if not token.special])
    built.add_special_tokens([token for token in tokens if token.special])
    built.post_processor = _around(v)
    document: str = built.to_str()
    return document


def _around(v: Vocabulary) -> Any:
    """The tokens around a text; transformers reads them here, and not in its config."""
    begin = [v.bos_id] if v.add_bos and v.bos_id is not None else []
    end = [v.eos_id] if v.add_eos and v.eos_id is not None else []
    if not begin and not end:
        return None
    return processors.TemplateProcessing(
        single=[*(v.pieces[id] for id in begin), "$A", *(v.pieces[id] for id in end)],
        special_tokens=[(v.pieces[id], id) for id in {*begin, *end}],
    )


def _byte_level(v: Vocabulary) -> Any:
    merges = [(left, right) for left, _, right in (m.partition(" ") for m in v.merges)]
    built = tokenizers.Tokenizer(
        models.BPE(vocab=dict(v.ids), merges=merges, ignore_merges=v.pre in LLAMA3_NAMES)
    )
    built.pre_tokenizer = pre_tokenizer(v.pre, v.where)
    built.decoder = decoders.ByteLevel()
    return built


def _sentence_piece(v: Vocabulary) -> Any:
    unknown = None if v.unknown_id is None else v.pieces[v.unknown_id]
    built = tokenizers.Tokenizer(
        models.BPE(vocab=dict(v.ids), merges=merges_of(v), unk_token=unknown, byte_fallback=True)
    )
    prepended = [normalizers.Prepend(SPACE)] if v.add_space_prefix else []
    built.normalizer = normalizers.Sequence([*prepended, normalizers.Replace(" ", SPACE)])
    stripped = [decoders.Strip(" ", 1, 0)] if v.add_space_prefix else []
    built.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *stripped]
    )
    return built


def hf_tokenizer_config(
    vocabulary: Vocabulary, context: int, templates: Mapping[str, str] = MappingProxyType({})
) -> Mapping[str, object]:
    """tokenizer_config.json: which class reads the tokenizer, and what its tokens mean."""
    v = vocabulary
    config: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": v.add_bos,
        "add_eos_token": v.add_eos,
        "bos_token": None if v.bos_id is None else v.pieces[v.bos_id],
        "eos_token": None if v.eos_id is None else v.pieces[v.eos_id],
        "unk_token": None if v.unknown_id is None else v.pieces[v.unknown_id],
    }
    if [*templates] == ["default"]:
        config["chat_template"] = templates["default"]
    elif templates:
        config["chat_template"] = [{"name": k, "template": text} for k, text in templates.items()]
    return config
