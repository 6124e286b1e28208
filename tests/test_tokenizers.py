"""Tokenizers: one id for each control tag, exact trips, strict files."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_files import ask_llama_cpp, differing, write_gguf

from lockstep.errors import EnvironmentLacks, InputError, UsageError
from lockstep.proof.export_texts import texts_for
from lockstep.tokenizers import (
    KINDS,
    PRE_TOKENIZERS,
    GGUFTokenizer,
    HFTokenizer,
    Kind,
    PreTokenizer,
    Tokenizer,
    gguf_tokenizer_metadata,
    round_trip,
    train_tokenizer,
    vocabulary_of,
)
from lockstep.tokenizers.types import library_ids

TAGS = ("[circle]", "[bar-chart]", "[bars:3]", "[palette:cool]", "[layout:top-left]")
ROWS = tuple(
    f'{TAGS[i % 5]}[palette:cool]<svg viewBox="0 0 64 64"><circle cx="{8 + i}" cy="{40 - i}" '
    f'r="{i % 9}" fill="teal"/></svg><eos>'
    for i in range(40)
)
EVERY = [(kind, splitting) for kind in KINDS for splitting in PRE_TOKENIZERS]


def trained(kind: Kind = "ascii_bpe", splitting: PreTokenizer = "superbpe") -> Tokenizer:
    return train_tokenizer(kind, ROWS, 340, TAGS, splitting)


ONE = trained()


@pytest.mark.parametrize(("kind", "splitting"), EVERY)
def test_every_row_comes_back_to_the_byte(kind: Kind, splitting: PreTokenizer) -> None:
    tokenizer = trained(kind, splitting)
    trip = round_trip(tokenizer, ROWS)
    assert trip.exact
    assert len(trip.rows) == len(ROWS)
    assert trip.n_equal_bytes == sum(map(len, ROWS))
    assert (tokenizer.kind, tokenizer.pre_tokenizer) == (kind, splitting)


@given(st.text(st.characters(codec="ascii", min_codepoint=32, max_codepoint=126)))
def test_any_printable_text_comes_back(text: str) -> None:
    assert ONE.decode(ONE.encode(text)) == text
    assert ONE.decode(ONE.encode_row(text)) == text


BYTES = trained("bpe")


@given(st.text(st.characters(codec="utf-8")))
def test_any_text_comes_back_through_bytes(text: str) -> None:
    assert BYTES.decode(BYTES.encode(text)) == text


@pytest.mark.parametrize(("kind", "splitting"), EVERY)
def test_each_tag_is_one_id_between_any_neighbours(kind: Kind, splitting: PreTokenizer) -> None:
    tokenizer = trained(kind, splitting)
    for tag in TAGS:
        id_ = tokenizer.token_id(tag)
        for before, after in (("", ""), ("a", "b"), ("[", "]"), ("<svg", '="'), (tag, " ")):
            ids = tokenizer.encode(before + tag + after)
            assert ids.count(id_) == 1 + before.count(tag)
    ids = {tokenizer.token_id(tag) for tag in (*TAGS, "<eos>")}
    assert ids == set(range(tokenizer.vocab_size - len(TAGS) - 1, tokenizer.vocab_size))


def test_no_merge_is_spent_on_tags() -> None:
    letters_of_tags = [p for p in ONE.pieces if "palette" in p and p not in TAGS]
    assert letters_of_tags == []


def test_users_cannot_type_the_end_token() -> None:
    assert ONE.eos_id not in ONE.encode("<eos>[circle]<eos>")
    assert ONE.encode_row("<eos>") == [ONE.eos_id]
    assert ONE.decode(ONE.encode("<eos>")) == "<eos>"


def merged(pieces: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """BPE as the paper has it: join the pair of the lowest rank until there is none."""
    while len(pieces) > 1:
        pairs = [(ranks.get(pair, 1 << 30), i) for i, pair in enumerate(pairwise(pieces))]
        rank, at = min(pairs)
        if rank == 1 << 30:
            break
        pieces = [*pieces[:at], pieces[at] + pieces[at + 1], *pieces[at + 2 :]]
    return pieces


@pytest.mark.parametrize(
    ("splitting", "pattern"),
    [
        ("superbpe", r"\d{1,3}(?=(?:\d{3})*(?!\d))|\D+"),
        ("gpt-2", r"'(?:[sdmt]|ll|ve|re)| ?[A-Za-z]+| ?\d+| ?[^\sA-Za-z\d]+|\s+(?!\S)|\s+"),
    ],
)
def test_ids_are_those_of_plain_bpe(splitting: PreTokenizer, pattern: str) -> None:
    tokenizer = trained("ascii_bpe", splitting)
    ranks = {pair: i for i, pair in enumerate(tokenizer.merges)}
    id_of = {piece: i for i, piece in enumerate(tokenizer.pieces)}
    bodies = [row[row.index("<svg") : -len("<eos>")] for row in ROWS]
    for text in (*bodies, "x 1234567 it's  fine", "10 200 3000"):
        spelled = [word.replace(" ", "Ġ") for word in re.findall(pattern, text)]
        expected = [id_of[p] for word in spelled for p in merged(list(word), ranks)]
        assert tokenizer.encode(text) == expected


def metadata_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """The keys that an export writes, as a reader gives them."""
    facts = gguf_tokenizer_metadata(vocabulary_of(tokenizer))
    kinds = "tokenizer.ggml.token_type"
    return {**facts, kinds: facts[kinds].tolist()}


ARABIC = tuple(f"[circle]<svg>١٢٣٤٥٦٧٨ १२३४५६७ {i}234567</svg><eos>" for i in range(40))


@pytest.mark.parametrize("splitting", PRE_TOKENIZERS)
def test_digits_of_all_scripts_have_the_ids_of_llama_cpp(
    splitting: PreTokenizer, tmp_path: Path
) -> None:
    tokenizer = train_tokenizer("bpe", ARABIC, 330, TAGS, splitting)
    facts = metadata_of(tokenizer)
    texts = texts_for(tokenizer.encode, TAGS)
    assert any(len(run) > 6 for text in texts for run in re.findall("[٠-٩]+", text))
    ours = list(map(tokenizer.encode, texts))
    assert not differing(texts, ours, map(GGUFTokenizer.read(facts).encode, texts))
    posts = [("/tokenize", {"content": text, "add_special": False}) for text in texts]
    told = ask_llama_cpp(write_gguf(tmp_path / "v.gguf", facts), posts)
    assert not differing(texts, ours, (answer["tokens"] for answer in told))


def test_a_tokenizer_that_counts_the_digits_of_all_scripts_is_known_and_its_export_is_not() -> None:
    """As they were trained here before: the texts of the proof show that GGUF has other ids."""
    new = train_tokenizer("bpe", ARABIC, 330, TAGS)
    spelled = json.dumps(r"(?=([0-9]{3})+(?![0-9]))")
    assert new.document.count(spelled) == 1
    old = Tokenizer(new.document.replace(spelled, json.dumps(r"(?=(\d{3})+(?!\d))")))
    assert old.pre_tokenizer == "superbpe"
    assert old.encode("1234567") == new.encode("1234567")
    assert old.encode("١٢٣٤٥٦٧٨") == [i for n in ("١٢", "٣٤٥", "٦٧٨") for i in old.encode(n)]
    facts = metadata_of(old)
    texts = texts_for(old.encode, TAGS)
    assert differing(texts, map(old.encode, texts), map(GGUFTokenizer.read(facts).encode, texts))


@pytest.mark.parametrize("digit", ["7", "٣"])
def test_long_numbers_are_cut_where_they_are_split_anyway(digit: str) -> None:
    tokenizer, text = train_tokenizer("bpe", ARABIC, 330, TAGS), f"a{digit * 2000}b"
    assert tokenizer.encode(text) == library_ids(tokenizer._text, text)


def test_training_is_repeatable() -> None:
    assert trained().document == trained().document
    assert trained().sha256 != trained("ascii_bpe", "gpt-2").sha256


@pytest.mark.parametrize(
    ("text", "where"),
    [("abc\u00e9", "column 4"), ("ab\ncd\re", "line 2, column 3"), ("\x01", "U+0001")],
)
def test_a_character_outside_the_alphabet_is_named(text: str, where: str) -> None:
    for encode in (ONE.encode, ONE.encode_row):
        with pytest.raises(InputError, match=re.escape(where)):
            encode(text)
    with pytest.raises(InputError, match=r"row 2, .*" + re.escape(where)):
        train_tokenizer("ascii_bpe", ["fine", text], 340, TAGS)


@pytest.mark.parametrize(
    "make",
    [
        lambda: train_tokenizer("ascii_bpe", ROWS, 100, TAGS),
        lambda: train_tokenizer("bpe", ROWS, 256, TAGS),
        lambda: train_tokenizer("bpe", ROWS, 400, ("[circle]", "[circle]")),
        lambda: train_tokenizer("bpe", ROWS, 400, ("[a[b]]",)),
        lambda: ONE.token_id("[square]"),
    ],
)
def test_a_wrong_request_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(UsageError):
        make()


def test_nothing_to_train_on_is_refused() -> None:
    with pytest.raises(InputError, match="got none"):
        train_tokenizer("ascii_bpe", [], 340, TAGS)


def test_ids_outside_the_vocabulary_are_refused() -> None:
    for wrong in (-1, ONE.vocab_size):
        with pytest.raises(InputError, match="ids below"):
            ONE.decode([0, wrong])


def test_a_file_gives_the_same_tokenizer(tmp_path: Path) -> None:
    ONE.save(tmp_path)
    again = Tokenizer.load(tmp_path, expect_sha256=ONE.sha256)
    assert again.document == ONE.document
    assert [again.encode_row(row) for row in ROWS] == [ONE.encode_row(row) for row in ROWS]
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def test_the_tokenizer_of_another_run_is_refused(tmp_path: Path) -> None:
    BYTES.save(tmp_path)
    with pytest.raises(InputError, match="SHA-256"):
        Tokenizer.load(tmp_path, expect_sha256=ONE.sha256)


def test_a_directory_that_is_not_there_is_an_error_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentLacks, match="expected to write"):
        ONE.save(tmp_path / "none")
    with pytest.raises(InputError, match="readable tokenizer"):
        Tokenizer.load(tmp_path / "none")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, len(ONE.document) - 1))
def test_a_torn_file_is_refused(n_bytes: int) -> None:
    with pytest.raises(InputError):
        Tokenizer(ONE.document[:n_bytes])


def changed(change: Callable[[Any], None]) -> str:
    document = json.loads(ONE.document)
    change(document)
    return json.dumps(document)


def drop_letter(document: Any) -> None:
    del document["model"]["vocab"]["q"]


def two_ends(document: Any) -> None:
    document["added_tokens"][0]["special"] = True


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(pre_tokenizer=None),
        lambda d: d.pop("pre_tokenizer"),
        lambda d: d["model"].pop("type"),
        lambda d: d.update(normalizer={"type": "Lowercase"}),
        lambda d: d["pre_tokenizer"]["pretokenizers"].reverse(),
        lambda d: d.update(added_tokens=[]),
        two_ends,
        drop_letter,
    ],
)
def test_a_file_of_another_make_is_refused(change: Callable[[Any], None]) -> None:
    with pytest.raises(InputError):
        Tokenizer(changed(change))


def test_the_trip_sees_a_broken_decoder() -> None:
    broken = Tokenizer(changed(lambda d: d.update(decoder=None)))
    trip = round_trip(broken, ROWS)
    assert not trip.exact
    assert trip.rows[0].first_difference is not None


def test_the_trip_sees_a_tag_that_is_not_one_id() -> None:
    def only_alone(document: Any) -> None:
        document["added_tokens"][0]["single_word"] = True

    trip = round_trip(Tokenizer(changed(only_alone)), ["x[circle]x<eos>"])
    assert trip.rows[0].exact  # the text comes back, so only the count of ids can tell
    assert trip.split_tags == ("[circle]",)
    assert not trip.exact


def test_a_trip_over_nothing_is_not_exact() -> None:
    assert not round_trip(ONE, []).exact


@pytest.mark.parametrize("n_digits", [299, 300, 301, 302, 303, 601, 604, 1205])
def test_a_long_number_has_the_ids_that_the_library_gives_it(n_digits: int, tmp_path: Path) -> None:
    ours = trained("bpe")
    vocabulary = vocabulary_of(ours)
    gguf = GGUFTokenizer(vocabulary)
    (tmp_path / "tokenizer.json").write_text(ours.document)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<eos>"}')
    hf = HFTokenizer(tmp_path)
    library = tokenizers.Tokenizer.from_str(ours.document)
    library.encode_special_tokens = True
    number = "".join(str(i * i % 10) for i in range(n_digits))
    for text in (number, f"a {number}b 12 {number}.", f"½{number}²{number}"):
        expected = library.encode(text, add_special_tokens=False).ids
        assert [t.encode(text) for t in (ours, gguf, hf)] == [expected] * 3
    arabic = number.translate({ord("0") + i: 0x660 + i for i in range(10)})
    mixed = f"{arabic}{number}x"
    expected = library.encode(mixed, add_special_tokens=False).ids
    assert ours.encode(mixed) == hf.encode(mixed) == expected


def test_a_very_long_number_is_no_trap() -> None:
    """Of 200 000 digits, each of which would be looked over to the end."""
    assert len(trained("bpe").encode("1" * 200_000)) > 60_000


def test_other_threads_run_while_a_large_text_is_cut() -> None:
    library = tokenizers.Tokenizer.from_str(trained("bpe", "gpt-2").document)
    text = "the cat sat on 12 mats, " * 20_000
    n_ticks = 0
    with ThreadPoolExecutor(1) as pool:
        ids = pool.submit(library_ids, library, text)
        while not ids.done():
            time.sleep(0.001)
            n_ticks += 1
    assert ids.result()
    assert n_ticks > 20, "the library held the interpreter"
