"""Merges as scores and scores as merges: ids of llama.cpp, of tokenizers and of transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_files import (
    ask_llama_cpp,
    differing,
    nasty_texts,
    prepend_blanks,
    sentencepiece_metadata,
    sentencepiece_model,
    write_gguf,
    write_hf_tokenizer,
)

from lockstep.errors import UsageError
from lockstep.oracle.llama_cpp import Post
from lockstep.tokenizers import (
    GGUFTokenizer,
    HFTokenizer,
    Part,
    Vocabulary,
    gguf_tokenizer_metadata,
    hf_tokenizer_config,
    hf_tokenizer_document,
    vocabulary_of,
)
from lockstep.tokenizers.merge_order import (
    merge_priority,
    merges_of,
    score_priority,
    scores_of,
)
from lockstep.tokenizers.merging import merge
from lockstep.tokenizers.vocabulary import NORMAL

TEXTS = nasty_texts()
MAKES = ("gemma", "llama")
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def tokenizer_json(make: str, path: Path) -> Path:
    """A directory of transformers, with the blanks of Llama 2, which GGUF can say."""
    write_hf_tokenizer(make, path)
    if make == "llama":
        prepend_blanks(path)
    return path


def library_ids(path: Path, *, markup: bool) -> list[list[int]]:
    """The ids of the library that tokenizer.json is for."""
    library = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    library.encode_special_tokens = not markup
    return [library.encode(text, add_special_tokens=False).ids for text in TEXTS]


def llama_cpp_ids(path: Path, metadata: dict[str, Any], *, markup: bool) -> list[list[int]]:
    """What llama.cpp makes of the texts with this vocabulary."""
    lists = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in metadata.items()}
    posts: list[Post] = [
        ("/tokenize", {"content": text, "add_special": False, "parse_special": markup})
        for text in TEXTS
    ]
    return [answer["tokens"] for answer in ask_llama_cpp(write_gguf(path, lists), posts)]


@pytest.mark.torch
@pytest.mark.parametrize("markup", [False, True])
@pytest.mark.parametrize("make", MAKES)
def test_llama_cpp_reads_the_ids_of_a_tokenizer_json(
    make: str, markup: bool, tmp_path: Path
) -> None:
    path = tokenizer_json(make, tmp_path / "hf")
    expected = library_ids(path, markup=markup)
    metadata = gguf_tokenizer_metadata(vocabulary_of(HFTokenizer(path)))
    assert not differing(
        TEXTS, llama_cpp_ids(tmp_path / "m.gguf", metadata, markup=markup), expected
    )
    # What llama.cpp's own converter writes where it finds no tokenizer.model.
    metadata["tokenizer.ggml.scores"] = [-1000.0] * len(metadata["tokenizer.ggml.tokens"])
    alike = llama_cpp_ids(tmp_path / "alike.gguf", metadata, markup=markup)
    assert differing(TEXTS, alike, expected)


@pytest.mark.torch
@pytest.mark.parametrize("make", MAKES)
def test_transformers_reads_the_ids_of_a_sentencepiece_file(make: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    gemma = make == "gemma"
    facts = sentencepiece_metadata(sentencepiece_model(gemma=gemma), gemma=gemma)
    first = GGUFTokenizer.read(facts)
    vocabulary = vocabulary_of(first)
    (tmp_path / "tokenizer.json").write_text(hf_tokenizer_document(vocabulary))
    config = hf_tokenizer_config(vocabulary, 4096)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    second = HFTokenizer(tmp_path)
    for markup in (False, True):
        found = library_ids(tmp_path, markup=markup)
        assert not differing(
            TEXTS, [first.encode_parts([Part(text, markup)]) for text in TEXTS], found
        )
        assert not differing(
            TEXTS, [second.encode_parts([Part(text, markup)]) for text in TEXTS], found
        )
    name = next(iter(second.control_names))
    parts = [Part(name, True), Part("hello"), Part(f"{name}\n", True), Part(" you")]
    assert second.encode_parts(parts) == first.encode_parts(parts)
    whole = Part("".join(part.text for part in parts), True)
    assert second.encode_parts(parts) == second.encode_parts([whole])
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert not differing(
        TEXTS, theirs(TEXTS, add_special_tokens=False).input_ids, library_ids(tmp_path, markup=True)
    )
    assert (theirs.bos_token_id, theirs.unk_token_id) == (first.bos_id, vocabulary.unknown_id)
    assert theirs("a").input_ids == [first.bos_id, *first.encode("a")]
    for text in ("hello world", "  a", "日本😀"):
        assert theirs.decode(first.encode(text)) == text
    again = vocabulary_of(second)
    assert (again.pieces, again.kinds, again.add_space_prefix) == (
        vocabulary.pieces, vocabulary.kinds, vocabulary.add_space_prefix,
    )  # fmt: skip


def small(pieces: list[str], **more: Any) -> Vocabulary:
    """A vocabulary of these pieces and the bytes."""
    facts = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *BYTES, *pieces],
        "tokenizer.ggml.scores": [0.0] * (259 + len(pieces)),
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[NORMAL] * len(pieces)],
        "tokenizer.ggml.add_space_prefix": False,
    }
    return replace(GGUFTokenizer.read(facts).vocabulary, **more)


PIECES = st.lists(st.text("ab", min_size=2, max_size=5), unique=True, max_size=9)
SPELLED = st.lists(st.text("ab", max_size=24), min_size=1, max_size=8)


@given(PIECES, st.randoms(use_true_random=False), SPELLED)
@settings(max_examples=150, deadline=None)
def test_scores_of_merges_are_the_merges_or_there_are_none(
    more: list[str], draw: Any, texts: list[str]
) -> None:
    pieces = ["a", "b", *more]
    pairs = [(p[:i], p[i:]) for p in more for i in range(1, len(p))]
    listed = [f"{a} {b}" for a, b in pairs if {a, b} <= {*pieces} and draw.random() < 0.8]
    draw.shuffle(listed)
    v = small(pieces, scores=(), merges=listed)
    by_rank = merge_priority(v)
    try:
        scored = replace(v, scores=scores_of(v))
    except UsageError as error:
        piece = next(p for p in more if f"the piece {p!r}" in error.message)
        assert len(merge(piece, by_rank)) == 2, "which whoever reads scores makes one"
        return
    for text in (*texts, *more):
        assert merge(text, score_priority(scored)) == merge(text, by_rank), text


@given(PIECES, st.randoms(use_true_random=False), SPELLED)
@settings(max_examples=150, deadline=None)
def test_merges_of_scores_are_those_that_the_library_makes(
    more: list[str], draw: Any, texts: list[str]
) -> None:
    scores = [float(score) for score in draw.sample(range(99), len(more))]
    v = small(["a", "b", *more], scores=[0.0] * 261 + scores)
    model = tokenizers.models.BPE(vocab=dict(v.ids), merges=merges_of(v))
    for text in (*texts, *more):
        parts = merge(text, score_priority(v))
        assert [token.value for token in model.tokenize(text)] == parts, text


def test_what_merges_and_scores_cannot_say_is_refused_by_piece() -> None:
    unlisted = small(["a", "b", "c", "bc", "abc"], scores=(), merges=["b c"])
    with pytest.raises(UsageError, match=r"'abc', which no merge makes of 'a' and 'bc'"):
        gguf_tokenizer_metadata(unlisted)
    scores = [0.0] * 259
    tied = small(["a", "b", "ab", "ba"], scores=[*scores, 0.0, 0.0, -7.0, -7.0])
    with pytest.raises(UsageError, match="the score -7 for both 'ab' and 'ba'"):
        hf_tokenizer_document(tied)
    strange = small(["a", "ax"], scores=[*scores, 0.0, -1.0])
    with pytest.raises(UsageError, match="'ax' of 'a' and 'x', not both tokens"):
        hf_tokenizer_document(strange)


@pytest.mark.torch
def test_what_a_tokenizer_json_says_and_gguf_cannot_is_refused(tmp_path: Path) -> None:
    path = write_hf_tokenizer("llama", tmp_path / "hf")  # its blank is for the first text only
    with pytest.raises(UsageError, match="one in front of the first text only"):
        gguf_tokenizer_metadata(vocabulary_of(HFTokenizer(path)))
    prepend_blanks(path)
    kept = json.loads((path / "tokenizer.json").read_text())
    for change, said in (
        ({"rstrip": True}, "with rstrip"),
        ({"lstrip": True, "single_word": True}, "with single_word and lstrip"),
        ({"normalized": True}, "with normalized"),
    ):
        document = json.loads(json.dumps(kept))
        document["added_tokens"][-1] |= change
        (path / "tokenizer.json").write_text(json.dumps(document))
        with pytest.raises(UsageError, match=said):
            vocabulary_of(HFTokenizer(path))
    unigram = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]]}
    (path / "tokenizer.json").write_text(
        json.dumps({**kept, "model": unigram, "added_tokens": [], "post_processor": None})
    )
    with pytest.raises(UsageError, match="got Unigram"):
        vocabulary_of(HFTokenizer(path))
