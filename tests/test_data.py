"""The corpus: every row true to its tags, splits disjoint, gates that can fail, windows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from itertools import chain
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.data.corpus import (
    SPLITS,
    Corpus,
    build_corpus,
    corpus_of_rows,
    coverage,
    split_of,
)
from lockstep.data.draw import draw
from lockstep.data.grammar import (
    CONTROL_TAGS,
    Prompt,
    all_prompts,
    parse_prompt,
    prompt_from_tags,
    split_row,
)
from lockstep.data.rows import read_rows
from lockstep.data.score import drawings_of, score
from lockstep.errors import GateError, InputError, UsageError
from lockstep.tokenizers import Tokenizer, train_tokenizer


@cache
def corpus() -> Corpus:
    """Made when a test asks for it: every worker reads this file, and one runs it."""
    return build_corpus(rows_per_prompt=2, seed=1)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer("ascii_bpe", corpus().train, 512, CONTROL_TAGS)


# Prompts.


def test_the_contract_has_these_prompts() -> None:
    assert len(all_prompts()) == len(set(all_prompts())) == 6 * 5 * (5 * 4 + 2) + 5 * 3 * 2 * 6 * 2
    assert {tag for prompt in all_prompts() for tag in prompt.tags} == set(CONTROL_TAGS)


@given(st.sampled_from(all_prompts()), st.randoms(use_true_random=False))
def test_tags_may_be_given_in_any_order(prompt: Prompt, rng: Random) -> None:
    tags = list(prompt.tags)
    rng.shuffle(tags)
    assert prompt_from_tags(tags) == prompt
    assert parse_prompt("".join(tags)) == parse_prompt(prompt.text + "<svg") == prompt


def test_what_is_left_open_gets_a_default() -> None:
    assert parse_prompt("[circle]").text == (
        "[circle][palette:neutral][style:filled][layout:center]"
    )
    assert parse_prompt("[line]").tags[2] == "[style:outlined]"
    assert parse_prompt("[bar-chart][ascending]").tags[:3] == (
        "[bar-chart]",
        "[bars:5]",
        "[ascending]",
    )


@pytest.mark.parametrize(
    "text",
    ["", "circle", "[circle] x", "[square]", "[circle][rect]", "[palette:cool]", "[circle][bars:3]",
     "[line][style:filled]", "[bar-chart][style:gradient]", "[bar-chart][ascending][descending]",
     "[bar-chart][layout:grid]", "[circle][circle]"],
)  # fmt: skip
def test_a_prompt_outside_the_contract_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_prompt(text)
    assert caught.value.hint


@pytest.mark.parametrize(
    "row",
    [
        lambda: "",
        lambda: "[circle]<svg></svg><eos>",
        lambda: "<svg></svg><eos>",
        lambda: corpus().train[0][:-5],
        lambda: " " + corpus().dev[0],
    ],
)
def test_a_row_of_another_form_is_refused(row: Callable[[], str]) -> None:
    text = row()
    with pytest.raises(InputError):
        split_row(text)


# The corpus.


def test_splits_share_no_row_and_no_prompt() -> None:
    prompts = [set(corpus().prompts(split)) for split in SPLITS]
    rows = [set(corpus().rows(split)) for split in SPLITS]
    drawings = [drawings_of(corpus().rows(split)) for split in SPLITS]
    for parts in (prompts, rows, drawings):
        assert all(parts)
        assert len(set().union(*parts)) == sum(map(len, parts))
    assert sum(map(len, prompts)) == len(all_prompts())
    for split, found in zip(SPLITS, prompts, strict=True):
        assert {split_of(prompt) for prompt in found} == {split}
    assert 60 <= len(prompts[2]) <= 140


def test_no_row_occurs_twice() -> None:
    rows = list(chain.from_iterable(corpus().rows(split) for split in SPLITS))
    assert len(rows) == len(set(rows)) > 1900


def test_every_tag_and_pair_is_covered() -> None:
    full = coverage(build_corpus().train)
    assert full.failures(min_per_tag=200, min_per_pair=30) == []
    thin = coverage([row for row in corpus().train if "[bars:7]" not in row])
    assert "[bars:7]: 0 rows" in thin.failures(min_per_tag=200, min_per_pair=1)
    assert "[bar-chart][bars:7]: 0 rows" in thin.failures(min_per_tag=1, min_per_pair=1)


def test_the_seed_decides_the_corpus() -> None:
    few = all_prompts()[::40]
    one, again, other = (build_corpus(seed=seed, prompts=few) for seed in (1, 1, 2))
    assert one == again
    assert set(one.train).isdisjoint(other.train) is False  # small pictures do recur
    assert one.train != other.train
    # Rows must not change by themselves: runs are compared across versions.
    text = "".join(row + "\n" for row in corpus().train)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "9744d3c0b6730c41"


def test_rows_fit_a_context_of_128(tokenizer: Tokenizer) -> None:
    lengths = [len(tokenizer.encode_row(row)) for split in SPLITS for row in corpus().rows(split)]
    assert max(lengths) <= 90
    assert sum(lengths) / len(lengths) < 50


def swapped(old: str, new: str) -> Callable[[Prompt, Random], str]:
    return lambda prompt, rng: draw(prompt, rng).replace(old, new)


@pytest.mark.parametrize(
    "faulty",
    [
        swapped('cx="', 'cx="1'),
        swapped("<rect", "<circle"),
        swapped('y="', 'y="1'),
        swapped("steelblue", "red"),
        swapped('stroke-width="3"', 'stroke-width="1"'),
        swapped("V60", "V50"),
        swapped("silver", "red"),
        swapped("</svg>", '<rect width="9" height="9"/></svg>'),
        lambda prompt, rng: draw(all_prompts()[0], rng),
    ],
)
def test_a_faulty_generator_breaks_the_build(faulty: Callable[[Prompt, Random], str]) -> None:
    few = [p for p in all_prompts() if {"[palette:neutral]", "[palette:cool]"} & set(p.tags)]
    with pytest.raises(GateError, match="expected every tag to be true"):
        build_corpus(rows_per_prompt=4, prompts=few, drawn_by=faulty)


def test_a_corpus_is_read_back(tmp_path: Path) -> None:
    corpus().save(tmp_path)
    assert Corpus.load(tmp_path) == corpus()
    (tmp_path / "dev.txt").unlink()
    with pytest.raises(InputError, match=r"dev\.txt"):
        Corpus.load(tmp_path)


def test_rows_of_any_kind_are_split_by_their_content(tmp_path: Path) -> None:
    rows = [f"<svg><title>{i % 150}</title></svg>" for i in range(300)]
    one, other = corpus_of_rows(rows), corpus_of_rows(reversed(rows))
    parts = [set(one.rows(split)) for split in SPLITS]
    assert all(parts)
    assert set().union(*parts) == set(rows)
    assert sum(map(len, parts)) == 150
    assert parts == [set(other.rows(split)) for split in SPLITS]
    few = corpus_of_rows(one.train[:1])
    few.save(tmp_path)
    assert Corpus.load(tmp_path) == few
    with pytest.raises(InputError, match="got none"):
        corpus_of_rows(one.holdout)


@pytest.mark.parametrize(
    ("data", "problem"),
    [(b"", "empty"), (b"\n \n", "empty"), (b"ok\nab\xff\n", r":2: expected UTF-8, got .* 0xFF")],
)
def test_a_file_without_rows_is_refused(tmp_path: Path, data: bytes, problem: str) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(InputError, match=problem):
        read_rows(tmp_path / "a.txt")


# Scores.


def test_a_row_of_the_corpus_scores_full_and_is_a_copy() -> None:
    prompt, svg = split_row(corpus().train[0])
    known = drawings_of(corpus().train)
    for text in (corpus().train[0], svg, svg + "<eos>"):
        found = score(text, prompt, known)
        assert (found.valid, found.exact_copy) == (True, True)
        assert found.n_true == len(prompt.tags)
    assert not score(split_row(corpus().holdout[0])[1], prompt, known).exact_copy


@pytest.mark.parametrize(
    "change", [lambda s: s[:-1], lambda s: s + s, lambda s: "x" + s, lambda s: ""]
)
def test_what_is_not_one_svg_scores_nothing(change: Callable[[str], str]) -> None:
    prompt, svg = split_row(corpus().train[0])
    found = score(change(svg), prompt, ())
    assert not found.valid
    assert found.reason
    assert found.predicates == dict.fromkeys(prompt.tags, False)
