"""What an answer is made of: its text and tokens, its choices, its grammars, its slots."""

from __future__ import annotations

import asyncio
import copy
import json
import re
import time
from collections.abc import AsyncIterator
from functools import cache
from typing import Any, cast

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from server_harness import ROWS

from lockstep.engine.sampling import Sampling
from lockstep.errors import UsageError
from lockstep.server.chooser import Chooser
from lockstep.server.constraint import (
    Constraints,
    choice_grammar,
    json_grammar,
    lark_grammar,
    regex_grammar,
)
from lockstep.server.exchange import answer_stream
from lockstep.server.generation import Generation, Penalties
from lockstep.server.pace import LEAST, Pace
from lockstep.server.scores import Token, scored
from lockstep.server.service import Answers
from lockstep.server.tool_calls import ToolCalls
from lockstep.server.transcript import Transcript
from lockstep.tokenizers import Tokenizer, decode, train_tokenizer


@cache
def tokenizer() -> Tokenizer:
    return train_tokenizer("bpe", ROWS, 300, ["[circle]"])


def told(ids: list[int], stops: list[str]) -> tuple[str, list[int], bool]:
    """All that a transcript tells of some ids, and whether it stopped."""
    transcript, text, tokens = Transcript(tokenizer(), stops), "", []
    for id in ids:
        more, more_tokens = transcript.push(Token(id))
        text, tokens = text + more, tokens + more_tokens
        if transcript.stopped:
            break
    more, more_tokens = transcript.finish()
    return text + more, [t.id for t in tokens + more_tokens], transcript.stopped


IDS = st.lists(st.integers(0, 298), max_size=30)
STOPS = st.lists(st.text("abcsvg<>/ ", min_size=1, max_size=4), max_size=3)


@given(ids=IDS, stops=STOPS)
def test_the_text_is_the_decoded_one_up_to_the_first_stop(ids: list[int], stops: list[str]) -> None:
    whole = decode(tokenizer(), ids)
    # The earliest moment at which a stop text is complete decides; of those the leftmost.
    ends = [at + len(s) for s in stops if (at := whole.find(s)) >= 0]
    text, tokens, stopped = told(ids, stops)
    if not ends:
        assert (text, tokens, stopped) == (whole, ids, False)
        return
    assert stopped
    assert whole.startswith(text)
    assert any(whole.startswith(stop, len(text)) for stop in stops)
    assert not any(stop in text for stop in stops)
    assert tokens == ids[: len(tokens)], "no token of the stop text, none lost before it"
    assert decode(tokenizer(), tokens).startswith(text) or "�" in text


@given(ids=IDS, stops=STOPS)
def test_nothing_is_told_twice_or_taken_back(ids: list[int], stops: list[str]) -> None:
    transcript, text = Transcript(tokenizer(), stops), ""
    for id in ids:
        more, _ = transcript.push(Token(id))
        text += more
        if transcript.stopped:
            assert transcript.finish() == ("", [])
            return
        held = decode(tokenizer(), ids)[len(text) :]
        assert decode(tokenizer(), ids).startswith(text) or "�" in held + text


def test_a_stop_text_that_begins_in_one_token_and_ends_in_another_is_never_shown() -> None:
    ids = tokenizer().encode("the cat</s") + tokenizer().encode("vg>rest")
    text, tokens, stopped = told(ids, ["</svg>"])
    assert (text, stopped) == ("the cat", True)
    assert decode(tokenizer(), tokens) == "the cat"


def test_a_stop_text_of_any_length_costs_no_time() -> None:
    began = time.process_time()
    text, _, stopped = told(tokenizer().encode("the cat sat") * 3, ["t" + "x" * 200_000])
    assert (text, stopped) == ("the cat sat" * 3, False)
    assert time.process_time() - began < 1.0, "seconds, where each beginning of it is looked for"


def test_logprobs_are_those_of_scipys_formula_in_order() -> None:
    logits_V = np.random.default_rng(0).normal(size=50).astype(np.float32)
    logits_V[[3, 9]] = logits_V.max() + 1
    token = scored(7, logits_V, 4)
    probabilities_V = np.exp(logits_V.astype(np.float64))
    probabilities_V /= probabilities_V.sum()
    assert token.logprob == pytest.approx(np.log(probabilities_V[7]), abs=1e-12)
    assert [id for id, _ in token.top[:2]] == [3, 9], "equal ones in the order of their ids"
    expected = np.argsort(-probabilities_V, kind="stable")[:4]
    assert [id for id, _ in token.top] == expected.tolist()
    assert scored(7, logits_V, None) == Token(7)
    assert len(scored(7, logits_V, 20).top) == 20


def chosen(logits: list[float], n: int, **penalties: object) -> list[int]:
    generation = Generation(prompt=(0,), penalties=Penalties(**penalties))  # type: ignore[arg-type]
    chooser = Chooser(generation)
    return [chooser.choose(np.array(logits, np.float32), [0]) for _ in range(n)]


def test_bias_and_penalties_move_the_choice() -> None:
    assert chosen([3.0, 2.5, 2.0], 3) == [0, 0, 0]
    assert chosen([3.0, 2.5, 2.0], 3, bias={2: 1.5}) == [2, 2, 2]
    assert chosen([3.0, 2.5, 2.0], 4, presence=0.7) == [0, 1, 0, 0], "once, however often it came"
    assert chosen([3.0, 2.5, 2.0], 4, frequency=0.7) == [0, 1, 0, 2], "once for each time"


class Vocabulary:
    """A served model, as far as grammars ask."""

    name = "vocabulary"

    class session:  # noqa: N801
        n_vocab = 300

    def __init__(self) -> None:
        self.tokenizer = tokenizer()


def drawn(grammar: str, seed: int, limit: int = 400) -> str | None:
    """A text that random choices under a grammar make; None if it is not complete by the limit."""
    make = Constraints(Vocabulary()).compile(grammar)  # type: ignore[arg-type]
    generation = Generation(
        prompt=(0,), constraint=make, sampling=Sampling(temperature=1.0, seed=seed)
    )
    chooser, ids = Chooser(generation), list[int]()
    rng = np.random.default_rng(seed)
    for _ in range(limit):
        id = chooser.choose(rng.normal(size=300).astype(np.float32), ids)
        if id in tokenizer().stop_ids:
            return decode(tokenizer(), ids)
        ids.append(id)
        if chooser.is_complete:
            return decode(tokenizer(), ids)
    return None


SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["circle", "square"]},
        "radius": {"type": "integer", "minimum": 1, "maximum": 99},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 4}, "maxItems": 3},
    },
    "required": ["kind", "radius", "tags"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("seed", range(5))
def test_a_schema_holds_whatever_is_drawn(seed: int) -> None:
    text = drawn(json_grammar(SCHEMA), seed)
    assert text is not None
    jsonschema.validate(json.loads(text), SCHEMA)


@pytest.mark.parametrize("seed", range(3))
def test_regex_choice_and_lark_hold(seed: int) -> None:
    assert re.fullmatch(
        r"[0-9]{2,4}-(a|bc)", drawn(regex_grammar(r"[0-9]{2,4}-(a|bc)"), seed) or ""
    )
    assert drawn(choice_grammar(['né "x"', "no\\pe", "€"]), seed) in ('né "x"', "no\\pe", "€")
    lark = 'start: "<" WORD ">"\nWORD: /[a-c]{1,3}/'
    assert re.fullmatch(r"<[a-c]{1,3}>", drawn(lark_grammar(lark), seed) or "")


@pytest.mark.parametrize(
    "grammar",
    [
        lark_grammar("start: A"),
        lark_grammar("x"),
        regex_grammar("a("),
        json_grammar({"type": "no"}),
    ],
)
def test_a_grammar_that_is_none_is_refused(grammar: str) -> None:
    with pytest.raises(UsageError, match="grammar"):
        Constraints(Vocabulary()).compile(grammar)  # type: ignore[arg-type]


def test_a_token_that_the_grammar_forbids_is_refused_in_a_sentence() -> None:
    constraint = Constraints(Vocabulary()).compile(regex_grammar("ab"))()  # type: ignore[arg-type]
    (wrong,) = tokenizer().encode("z")
    assert not constraint.allowed()[wrong]
    with pytest.raises(UsageError, match=r'grammar: .* token "z" doesn.t satisfy') as caught:
        constraint.take(wrong)
    assert len(caught.value.message) < 200
    assert "\n" not in caught.value.message, "and not in the state of a parser"


def test_ids_without_logits_are_no_end_of_a_grammar() -> None:
    served = Vocabulary()
    served.tokenizer = copy.copy(tokenizer())
    served.tokenizer.stop_ids |= {-1, 5000}  # of a configuration that says so
    expected = Constraints(Vocabulary()).compile(regex_grammar("a?"))()  # type: ignore[arg-type]
    found = Constraints(served).compile(regex_grammar("a?"))()  # type: ignore[arg-type]
    assert (found.allowed() == expected.allowed()).all()


def test_the_pace_follows_the_time_of_passes() -> None:
    pace = Pace(512, target_s=0.1)
    for _ in range(10):
        pace.saw(pace.rows, 0.01)
    assert pace.rows == 512
    pace.saw(512, 0.2)
    assert pace.rows == 256
    for _ in range(10):
        pace.saw(pace.rows, 0.2)
    assert pace.rows == LEAST, "prompts always go on"
    pace.saw(1, 0.01)
    assert pace.rows == LEAST, "a pass that was not full says nothing"


CALL = '<tool_call>\n{"name": "draw", "arguments": {"what": "né"}}\n</tool_call>'


def test_calls_are_told_from_content_however_the_text_is_cut() -> None:
    text = f"<tool_ {CALL} then {CALL}<tool_call>[1]</tool_call><tool_call>"
    for size in (1, 3, 7, len(text)):
        reading, content, calls = ToolCalls(), "", []
        for i in range(0, len(text), size):
            more, more_calls = reading.push(text[i : i + size])
            content, calls = content + more, calls + more_calls
        more, more_calls = reading.push("", is_last=True)
        assert content + more == "<tool_  then <tool_call>[1]</tool_call><tool_call>"
        assert [call["function"]["name"] for call in calls + more_calls] == ["draw", "draw"]
        assert json.loads(calls[0]["function"]["arguments"]) == {"what": "né"}
        assert calls[0]["id"] != calls[1]["id"]


def test_the_last_call_needs_no_end() -> None:
    content, calls = ToolCalls().push(CALL.removesuffix("</tool_call>"), is_last=True)
    assert (content, len(calls)) == ("", 1)


class _Unread:
    """Answers of a request, as far as a stream closes them."""

    closed = False

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        raise AssertionError("nobody reads this")
        yield {}

    def close(self) -> None:
        self.closed = True


def test_a_client_that_goes_before_the_first_event_is_not_answered_on() -> None:
    async def send(_: Any) -> None:
        await asyncio.Event().wait()  # nothing is read at the other end

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def served() -> None:
        response = answer_stream(cast(Answers, answers), answers.chunks(), {})
        await response({"type": "http", "method": "POST"}, receive, send)

    answers = _Unread()
    asyncio.run(asyncio.wait_for(served(), 20))
    assert answers.closed
