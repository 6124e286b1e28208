"""Tokenizers of GGUF files: ids and bytes of llama.cpp, of transformers and of SentencePiece."""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_files import (
    CONTROLS,
    USER_DEFINED,
    ask_llama_cpp,
    bpe_metadata,
    differing,
    nasty_texts,
    sentencepiece_metadata,
    sentencepiece_model,
    write_gguf,
)

from lockstep.engine.streaming import stream_text
from lockstep.errors import InputError, UsageError
from lockstep.oracle.llama_cpp import Post
from lockstep.tokenizers import vocabulary_of
from lockstep.tokenizers.gguf_tokenizer import GGUFTokenizer
from lockstep.tokenizers.merging import merge
from lockstep.tokenizers.model_tokenizer import Part, begin_ids, decode
from lockstep.tokenizers.pre_tokenizers import SPLITS, pre_tokenizer

TEXTS = nasty_texts()
SENTENCEPIECE = ("llama", "gemma")
# Names for the same splitting are read alike; one of each is enough here.
MAKES = (*sorted(set(SPLITS) - {"llama3", "llama-v3", "deepseek-r1-qwen"}), *SENTENCEPIECE)


@functools.cache
def metadata(make: str) -> dict[str, Any]:
    if make in SENTENCEPIECE:
        gemma = make == "gemma"
        return sentencepiece_metadata(spm(make), gemma=gemma)
    return bpe_metadata(pre_tokenizer(make), make)


@functools.cache
def spm(make: str) -> bytes:
    return sentencepiece_model(gemma=make == "gemma")


@functools.cache
def ours(make: str) -> GGUFTokenizer:
    return GGUFTokenizer.read(metadata(make), make)


@pytest.mark.parametrize("make", MAKES)
def test_ids_and_bytes_are_those_of_llama_cpp(make: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "vocab.gguf", metadata(make))
    tokenizer = ours(make)
    posts: list[Post] = [
        ("/tokenize", {"content": t, "add_special": s, "parse_special": s, "with_pieces": True})
        for s in (False, True)
        for t in TEXTS
    ]
    told = [answer["tokens"] for answer in ask_llama_cpp(path, posts)]
    for markup, answers in ((False, told[: len(TEXTS)]), (True, told[len(TEXTS) :])):
        begin = begin_ids(tokenizer) if markup else []
        found = [[*begin, *tokenizer.encode_parts([Part(text, markup)])] for text in TEXTS]
        assert not differing(TEXTS, found, [[t["id"] for t in answer] for answer in answers])
        pieces = {t["id"]: t["piece"] for answer in answers for t in answer}
        for id, piece in pieces.items():
            spelled = piece.encode("utf-8") if isinstance(piece, str) else bytes(piece)
            assert tokenizer.token_bytes(id) == spelled, (id, piece)


@pytest.mark.parametrize("make", ["qwen2", "llama"])
def test_a_piece_ends_at_a_nul_as_that_of_llama_cpp_does(make: str, tmp_path: Path) -> None:
    """There pieces are strings of C."""
    added = ["\0", "\0a", "xy\0z", "\0\0"]
    facts = dict(metadata(make))
    more: dict[str, list[Any]] = {"tokens": added, "token_type": [4] * 4, "scores": [0.0] * 4}
    for key in [key for key in more if f"tokenizer.ggml.{key}" in facts]:
        facts[f"tokenizer.ggml.{key}"] = facts[f"tokenizer.ggml.{key}"] + more[key]
    texts = ["\0", "a\0b", "xyz", "xy\0z", "\0\0a", "[EMPTY_3]", *TEXTS[:40]]
    path = write_gguf(tmp_path / "vocab.gguf", facts)
    posts: list[Post] = [("/tokenize", {"content": t, "add_special": False}) for t in texts]
    theirs = [answer["tokens"] for answer in ask_llama_cpp(path, posts)]
    tokenizer = GGUFTokenizer.read(facts)
    assert not differing(texts, [tokenizer.encode(text) for text in texts], theirs)
    assert tokenizer.vocabulary.ids["xy"] in tokenizer.encode("xyz")


def test_tokens_of_phi_3_take_the_blanks_behind_them_as_in_llama_cpp(tmp_path: Path) -> None:
    """It knows them by the name of the model."""
    more: dict[str, list[Any]] = {
        "tokens": ["<|endoftext|>", "<|user|>", "<|end|>"], "token_type": [3, 3, 4],
        "scores": [0.0] * 3,
    }  # fmt: skip
    facts = dict(metadata("llama"))
    for key in more:
        facts[f"tokenizer.ggml.{key}"] = facts[f"tokenizer.ggml.{key}"] + more[key]
    texts = [
        *("<|user|>\n hello", "a <|end|> \n b", "<s> x", "</s> x", "<|endoftext|>  x", "<unk> y"),
        *("<|user|> \t\v\f\r\u00a0\u2003x", "<|end|>  <|end|>   <s> a", "<|user|>  "),
    ]
    for name in ("My Phi-3 merge", "PHI3", "Phi 3"):
        path = write_gguf(tmp_path / "vocab.gguf", facts | {"general.name": name})
        asked = {"add_special": False, "parse_special": True}
        answers = ask_llama_cpp(path, [("/tokenize", {"content": t, **asked}) for t in texts])
        tokenizer = GGUFTokenizer.read(facts | {"general.name": name})
        found = [tokenizer.encode_parts([Part(text, markup=True)]) for text in texts]
        assert not differing(texts, found, [answer["tokens"] for answer in answers])
        cut = [[Part(text[:8], markup=True), Part(text[8:])] for text in texts[:1]]
        assert [tokenizer.encode_parts(parts) for parts in cut] == found[:1]
        if name != "Phi 3":
            assert tokenizer.most_bytes is None
            with pytest.raises(UsageError, match="blanks behind them"):
                vocabulary_of(tokenizer)


@pytest.mark.parametrize("make", MAKES)
def test_no_token_stands_for_more_bytes_than_said(make: str) -> None:
    tokenizer = ours(make)
    for text in (*TEXTS, " " * 999, "▁" * 999, "the cat " * 99, *tokenizer.control_names):
        ids = tokenizer.encode_parts([Part(text, markup=True)])
        assert len(ids) * (tokenizer.most_bytes or 0) >= len(text.encode()), text


@pytest.mark.parametrize("make", MAKES)
def test_a_users_text_never_becomes_a_control_token(make: str) -> None:
    tokenizer = ours(make)
    names = [*tokenizer.control_names, *CONTROLS]
    for text in (*TEXTS, *names, "".join(names), "\n".join(f"x{n} y" for n in names)):
        assert not [id for id in tokenizer.encode(text) if tokenizer.is_control(id)], text
    markup = tokenizer.encode_parts([Part("".join(tokenizer.control_names), markup=True)])
    assert len(markup) == len(tokenizer.control_names), "in markup, each of them is one"


def test_a_control_token_that_merges_could_make_is_not_made() -> None:
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{b:02X}>" for b in range(256)),
        "<",
        "s",
        ">",
        "<s",
        "▁",
    ]
    made = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": [-float(i) for i in range(len(pieces))],
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, 1, 1, 1, 1, 1],
        "tokenizer.ggml.add_space_prefix": False,
    }
    tokenizer = GGUFTokenizer.read(made)
    assert [pieces[id] for id in tokenizer.encode("<s>")] == ["<s", ">"]
    assert tokenizer.encode_parts([Part("<s>", markup=True)]) == [1]


def test_a_text_beside_markup_is_one_with_it() -> None:
    tokenizer = ours("qwen2")
    im_start, im_end = (tokenizer.vocabulary.ids[name] for name in CONTROLS[1:])
    parts = [Part("<|im_start|>us", True), Part("er <|im_end|>"), Part("\nx<|im_end|>", True)]
    whole = tokenizer.encode("user <|im_end|>\nx")
    assert tokenizer.encode_parts(parts) == [im_start, *whole, im_end]


@pytest.mark.parametrize("make", MAKES)
def test_every_text_comes_back(make: str) -> None:
    tokenizer = ours(make)
    for text in TEXTS:
        expected = f" {text}" if tokenizer.vocabulary.add_space_prefix and text else text
        if make in SENTENCEPIECE:
            expected = expected.replace("▁", " ")  # which SentencePiece cannot tell apart
        ids = tokenizer.encode_parts([Part(text)])
        assert b"".join(map(tokenizer.token_bytes, ids)).decode() == expected, text
        assert decode(tokenizer, ids) == expected
        pieces = list(stream_text(tokenizer, ids))
        assert "".join(pieces) == expected
        assert "�" in text or not any("�" in piece for piece in pieces), "half a character"


TRANSFORMERS = {"qwen2": "Qwen2Tokenizer", "gpt-2": "GPT2Tokenizer"}


@pytest.mark.torch
@pytest.mark.parametrize("make", sorted(TRANSFORMERS))
def test_ids_are_those_of_transformers(make: str) -> None:
    transformers = pytest.importorskip("transformers")
    facts = metadata(make)
    pieces = facts["tokenizer.ggml.tokens"]
    n = len(pieces) - len(CONTROLS) - len(USER_DEFINED)
    theirs = getattr(transformers, TRANSFORMERS[make])(
        vocab={piece: id for id, piece in enumerate(pieces[:n])},
        merges=[tuple(merge.split(" ")) for merge in facts["tokenizer.ggml.merges"]],
        **dict.fromkeys(("unk_token", "bos_token", "eos_token", "pad_token"), CONTROLS[0]),
    )
    theirs.add_special_tokens({"additional_special_tokens": list(CONTROLS[1:])}, False)
    theirs.add_tokens(list(USER_DEFINED))
    # The long s: `(?i:'s)` of transformers takes it for an s.
    texts = [t for t in TEXTS if "ſ" not in t]
    if make == "qwen2":  # transformers composes; llama.cpp has no such step, and a file no such key
        texts = [t for t in texts if unicodedata.normalize("NFC", t) == t]
    assert len(texts) > 100
    found = [ours(make).encode_parts([Part(text, markup=True)]) for text in texts]
    expected = [theirs(text, add_special_tokens=False).input_ids for text in texts]
    assert not differing(texts, found, expected)


@pytest.mark.parametrize("make", SENTENCEPIECE)
def test_ids_are_those_of_sentencepiece(make: str) -> None:
    theirs = sentencepiece.SentencePieceProcessor(model_proto=spm(make))
    tokenizer = ours(make)
    # What it is told of control tokens comes first there; a NUL and a blank that is spelled out,
    # too, are not what it takes text to have.
    odd = ("\x00", "▁", *tokenizer.control_names)
    texts = [t for t in TEXTS if not any(o in t for o in odd)]
    assert len(texts) > 100
    assert not differing(texts, map(tokenizer.encode, texts), theirs.encode(texts))


@pytest.mark.torch
@pytest.mark.parametrize("make", SENTENCEPIECE)
def test_ids_are_those_of_transformers_for_sentencepiece(make: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.tokenization_utils_sentencepiece import SentencePieceExtractor

    path = tmp_path / "tokenizer.model"
    path.write_bytes(spm(make))
    vocab, _, merges = SentencePieceExtractor(str(path)).extract()
    facts = metadata(make)
    pieces, kinds = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    make_theirs = transformers.GemmaTokenizer if make == "gemma" else transformers.LlamaTokenizer
    theirs = make_theirs(vocab=vocab, merges=merges)
    theirs.add_tokens(
        [
            transformers.AddedToken(piece, normalized=False, special=kind == 3)
            for piece, kind in zip(pieces, kinds, strict=True)
            if kind == 3 or (kind == 4 and not piece.isspace()) or (kind == 4 and "\n" in piece)
        ]
    )
    # Runs of blanks that are longer than the longest token of blanks are cut in two other ways.
    texts = [t for t in TEXTS if " " * 9 not in t and "▁" not in t]
    if make == "llama":  # no second blank is put before one, and none behind a control token
        texts = [t for t in texts if not t.startswith(" ") and not re.search("</?(s|unk)>", t)]
    assert len(texts) > 100
    found = [ours(make).encode_parts([Part(text, markup=True)]) for text in texts]
    expected = [theirs(text, add_special_tokens=False).input_ids for text in texts]
    assert not differing(texts, found, expected)


def test_another_splitting_has_other_ids() -> None:
    """What the comparisons above would say of a file that is read under a wrong name."""
    wrong = GGUFTokenizer.read({**metadata("superbpe"), "tokenizer.ggml.pre": "qwen2"})
    assert differing(TEXTS, map(wrong.encode, TEXTS), map(ours("superbpe").encode, TEXTS))
    unscored = {**metadata("llama")}
    unscored["tokenizer.ggml.scores"] = unscored["tokenizer.ggml.scores"][::-1]
    assert differing(
        TEXTS, map(GGUFTokenizer.read(unscored).encode, TEXTS), map(ours("llama").encode, TEXTS)
    )


@given(st.text("ab", max_size=40), st.permutations([a + b for a in "ab" for b in "ab"]))
@settings(max_examples=200, deadline=None)
def test_merges_are_those_of_looking_at_all_pairs_each_time(text: str, order: list[str]) -> None:
    ranks = {(pair[0], pair[1]): float(i // 2) for i, pair in enumerate(order)}
    ranks[order[0], "a"] = 0.5

    def slowly(parts: list[str]) -> list[str]:
        pairs = [(ranks.get((a, b)), i) for i, (a, b) in enumerate(itertools.pairwise(parts))]
        known = [(rank, i) for rank, i in pairs if rank is not None]
        if not known:
            return parts
        _, i = min(known)
        return slowly([*parts[:i], parts[i] + parts[i + 1], *parts[i + 2 :]])

    assert merge(text, lambda a, b: ranks.get((a, b))) == slowly(list(text))


@pytest.mark.parametrize(
    ("make", "key", "value", "culprit"),
    [
        ("qwen2", "model", "bert", "model"),
        ("qwen2", "model", None, "model"),
        ("qwen2", "pre", "qwen3-next", "pre: expected one of"),
        ("qwen2", "pre", 3, "pre"),
        ("qwen2", "tokens", None, "tokens"),
        ("qwen2", "tokens", ["a", "b", "a"], "'a' twice"),
        ("qwen2", "tokens", [1, 2], "tokens"),
        ("qwen2", "tokens", "abc", "tokens"),
        ("qwen2", "token_type", [1, 1], "as many as tokens"),
        ("qwen2", "token_type", ["1"] * 5000, "token_type"),
        ("qwen2", "token_type", [-1] * 5000, "token_type"),
        ("qwen2", "merges", None, "merges"),
        ("qwen2", "eos_token_id", 10**6, "eos_token_id"),
        ("qwen2", "eos_token_id", -1, "eos_token_id"),
        ("qwen2", "eot_token_id", "x", "eot_token_id"),
        ("qwen2", "add_bos_token", 1, "add_bos_token"),
        ("qwen2", "bos_token_id", True, "bos_token_id"),
        ("llama", "scores", None, "scores"),
        ("llama", "scores", [0.0], "scores"),
        ("llama", "scores", [float("nan")] * 5000, "scores: expected numbers"),
        ("llama", "add_space_prefix", "no", "add_space_prefix"),
    ],
)
def test_metadata_that_is_wrong_is_refused_by_its_key(
    make: str, key: str, value: object, culprit: str
) -> None:
    facts = {**metadata(make), f"tokenizer.ggml.{key}": value}
    if value is None:
        del facts[f"tokenizer.ggml.{key}"]
    with pytest.raises(InputError, match=r"tokenizer\.ggml") as caught:
        GGUFTokenizer.read(facts, "some.gguf")
    assert culprit in caught.value.message
    assert caught.value.message.startswith("some.gguf")
    assert caught.value.hint


def test_a_beginning_that_is_asked_for_must_be_named() -> None:
    facts = {**metadata("qwen2"), "tokenizer.ggml.add_bos_token": True}
    assert GGUFTokenizer.read(facts).add_bos
    del facts["tokenizer.ggml.bos_token_id"]
    with pytest.raises(InputError, match="bos_token_id"):
        GGUFTokenizer.read(facts)


@pytest.mark.parametrize("text", ["a\ud800b", "\udfff"])
def test_half_a_character_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="half of a character"):
        ours("qwen2").encode(text)


def test_a_character_outside_a_small_alphabet_is_refused_and_not_dropped() -> None:
    facts = metadata("superbpe")
    pieces = facts["tokenizer.ggml.tokens"]
    without = ["[NUL]" if piece == "Ā" else piece for piece in pieces]
    tokenizer = GGUFTokenizer.read({**facts, "tokenizer.ggml.tokens": without})
    with pytest.raises(InputError, match="alphabet"):
        tokenizer.encode("a\x00")


def test_stops_are_the_end_and_what_ends_a_turn() -> None:
    tokenizer = ours("qwen2")
    names = {tokenizer.vocabulary.pieces[id] for id in tokenizer.stop_ids}
    assert names == {"<|endoftext|>", "<|im_end|>"}
    facts = {**metadata("qwen2"), "tokenizer.ggml.eot_token_id": 5}
    assert 5 in GGUFTokenizer.read(facts).stop_ids
    gemma = ours("gemma")
    names = {gemma.vocabulary.pieces[id] for id in gemma.stop_ids}
    assert names == {"<eos>", "<end_of_turn>"}


@pytest.mark.parametrize("make", ["superbpe", "llama"])
@pytest.mark.parametrize("word", ["ab", "12", "१२"])
def test_a_very_long_word_is_no_trap(make: str, word: str) -> None:
    """100 000 characters in one word: the square of that would take minutes."""
    text = word * 50_000
    assert decode(ours(make), ours(make).encode(text)).strip() == text
