"""Output that a grammar constrains, token by token."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Collection, Mapping
from typing import Any

import llguidance
import numpy as np
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from numpy.typing import NDArray

from lockstep.errors import UsageError
from lockstep.server.served import Served

# Without a bound on blanks, a model may write blanks until its limit, which is valid JSON so far.
_JSON: Any = {
    "whitespace_flexible": True,
    "whitespace_pattern": r"[ \n]{0,8}",
}

# Why a grammar ends before the text does, by the names that llguidance has for it.
_ENDS = {"NoExtension": "nothing may follow", "NoExtensionBias": "nothing may follow"}
MAX_CHARACTERS = 1 << 17  # of a grammar: some take seconds, and memory, beyond that
MAX_LINE = 1 << 13  # of Lark: the place of an error in a line takes the square of its length

Allowed = NDArray[np.bool_]


def json_grammar(schema: Mapping[str, Any]) -> str:
    """The grammar of the JSON documents that a schema allows."""
    return str(llguidance.LLMatcher.grammar_from_json_schema(dict(schema), overrides=_JSON))


def regex_grammar(regex: str) -> str:
    """The grammar of the texts that a regular expression matches as a whole."""
    return str(llguidance.LLMatcher.grammar_from_regex(regex))


def lark_grammar(text: str) -> str:
    """The grammar that a text in the language of Lark describes.

    Raises: UsageError if a line is too long.
    """
    longest = max(map(len, text.split("\n")))
    if longest > MAX_LINE:
        raise UsageError(
            f"grammar: expected lines of at most {MAX_LINE} characters, got {longest}",
            hint="break it into several lines",
        )
    return str(llguidance.LLMatcher.grammar_from_lark(text))


def choice_grammar(texts: Collection[str]) -> str:
    """The grammar of one of some texts."""
    choices = " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)
    return str(llguidance.LLMatcher.grammar_from_lark(f"start: {choices}"))


class Constraint:
    """Which tokens may come next, given those that came."""

    def __init__(self, matcher: llguidance.LLMatcher, n_vocab: int, stop_ids: list[int]) -> None:
        self._matcher = matcher
        self._stop_ids = stop_ids
        self._mask = allocate_token_bitmask(1, n_vocab)
        self._n_vocab = n_vocab

    def allowed(self) -> Allowed:
        """For each id of the vocabulary, whether it may come next.

        Raises: UsageError if the grammar cannot be followed, or allows nothing.
        """
        fill_next_token_bitmask(self._matcher, self._mask)
        self._check()
        bits = np.unpackbits(self._mask.view(np.uint8)[0], bitorder="little")
        allowed_V = bits[: self._n_vocab].astype(np.bool_)
        allowed_V[self._stop_ids] = self._matcher.is_accepting()
        if not allowed_V.any():
            raise UsageError("grammar: expected one that a text can end under, found a dead end")
        return allowed_V

    def take(self, id: int) -> None:
        """Goes on behind a token that was allowed.

        Raises: UsageError if the grammar cannot be followed.
        """
        if id not in self._stop_ids:
            self._matcher.consume_token(id)
            self._check()

    @property
    def is_complete(self) -> bool:
        """Whether nothing but the end may follow."""
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise _refused(self._matcher)


def _refused(matcher: llguidance.LLMatcher) -> UsageError:
    """What a matcher says, without the state of its parser and the grammar, which it adds."""
    message = matcher.get_error()
    reason = re.split(r"\s*<(?:state|backtrace)>", message)[0]
    reason = _ENDS.get(reason, reason)
    return UsageError(f"grammar: expected one that can be followed, got: {reason:.200}")


class Constraints:
    """Grammars over one vocabulary; its tables are made when the first grammar comes."""

    def __init__(self, served: Served) -> None:
        self._served = served
        # A configuration may name ids that have no logits, such as -1 for none.
        n_vocab = served.session.n_vocab
        self._stop_ids = sorted(id for id in served.tokenizer.stop_ids if 0 <= id < n_vocab)
        self._making = threading.Lock()
        self._tokenizer: llguidance.LLTokenizer | None = None

    def compile(self, grammar: str) -> Callable[[], Constraint]:
        """A maker of constraints, one for each sequence.

        Raises: UsageError with what is wrong with the grammar.
        """
        if len(grammar) > MAX_CHARACTERS:
            raise UsageError(
                f"grammar: expected at most {MAX_CHARACTERS} characters, got {len(grammar)}"
            )
        with self._making:
            if self._tokenizer is None:
                self._tokenizer = self._tables()
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise _refused(matcher)
        n_vocab = self._served.session.n_vocab

        def make() -> Constraint:
            return Constraint(matcher.deep_copy(), n_vocab, self._stop_ids)

        make().allowed()  # many a grammar shows at its first token that it cannot be followed
        return make

    def _tables(self) -> llguidance.LLTokenizer:
        if not self._stop_ids:
            raise UsageError(
                "grammar: expected a model with an end token, got one without",
                hint="leave the grammar out",
            )
        wrapper = llguidance.TokenizerWrapper(_Vocabulary(self._served, self._stop_ids))
        return llguidance.LLTokenizer(wrapper, eos_token=self._stop_ids)


class _Vocabulary:
    """The vocabulary as llguidance asks for it; control tokens are no text to it."""

    bos_token_id = None

    def __init__(self, served: Served, stop_ids: list[int]) -> None:
        self._tokenizer = served.tokenizer
        self.eos_token_id = stop_ids[0]
        self.tokens, self.special_token_ids = list[bytes](), list[int]()
        for id in range(served.session.n_vocab):
            piece = self._tokenizer.token_bytes(id)
            if not piece or self._tokenizer.is_control(id) or id in stop_ids:
                self.special_token_ids.append(id)
                piece = b"\xff[%d]" % id  # how the library marks a token that is no text
            self.tokens.append(piece)

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenizer.encode(text.decode("utf-8", "replace"))
