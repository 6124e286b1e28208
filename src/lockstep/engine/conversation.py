"""Answers of a model: from a prompt as it is, or from a conversation through its chat template."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from lockstep.engine.sampling import Sampler
from lockstep.engine.session import InferenceSession, Logits, Piece
from lockstep.engine.streaming import THINK_BEGIN, split_thinking, stream_text
from lockstep.errors import UsageError
from lockstep.tokenizers import ChatTemplate, Message, ModelTokenizer, Part

Finish = Literal["begun", "stop", "length", "context", "interrupted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What ends an answer besides the model's own end tokens."""

    max_tokens: int | None = None  # None: what the context holds
    stop_texts: tuple[str, ...] = ()
    ignore_end: bool = False


@dataclass(slots=True, kw_only=True)
class Answer:
    """An answer, complete once the pieces have been read.

    Units: seconds; the time of the first token counts as reading.
    """

    prompt_ids: Sequence[int]
    n_reused: int = 0  # tokens of the prompt that were read for an earlier answer
    ids: list[int] = field(default_factory=list)
    text: str = ""
    thinking: str = ""
    finish: Finish = "begun"
    read_s: float = 0.0
    write_s: float = 0.0

    @property
    def read_tok_s(self) -> float | None:
        """Tokens of the prompt that were read in a second, None if none were."""
        n_read = len(self.prompt_ids) - self.n_reused
        return n_read / self.read_s if self.read_s > 0 and n_read else None

    @property
    def write_tok_s(self) -> float | None:
        """Tokens after the first that were written in a second, None if there are none."""
        return (len(self.ids) - 1) / self.write_s if self.write_s > 0 else None


class Speaker:
    """One sequence of a session that is asked again and again; what prompts share is read once."""

    def __init__(
        self,
        session: InferenceSession,
        tokenizer: ModelTokenizer,
        *,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        """`interrupted` is asked between tokens, since a pass must not be broken off inside."""
        self.session = session
        self.tokenizer = tokenizer
        self._interrupted = interrupted
        self._read: list[int] = []  # the tokens that the caches hold

    def answer(
        self, prompt_ids: Sequence[int], sampler: Sampler, limits: Limits, *,
        begun: bool | None = None,
    ) -> tuple[Answer, Iterator[tuple[bool, str]]]:  # fmt: skip
        """An answer that is still empty, and the pieces that make it when they are read.

        Each piece comes with whether it is thinking; `begun` says whether the prompt opened that,
        None that there is none to look for.

        Raises: UsageError, with the first piece, if the prompt does not fit.
        """
        answer = Answer(prompt_ids=list(prompt_ids))
        return answer, self._pieces(answer, sampler, limits, begun)

    def _pieces(
        self, answer: Answer, sampler: Sampler, limits: Limits, begun: bool | None
    ) -> Iterator[tuple[bool, str]]:
        stop_ids = frozenset() if limits.ignore_end else self.tokenizer.stop_ids
        pieces = stream_text(
            self.tokenizer, self._tokens(answer, sampler, limits, stop_ids), stop_ids=stop_ids,
            stop_texts=limits.stop_texts, show_control=limits.ignore_end,
        )  # fmt: skip
        plain = ((False, text) for text in pieces)
        for thinks, text in plain if begun is None else split_thinking(pieces, begun=begun):
            if thinks:
                answer.thinking += text
            else:
                answer.text += text
            yield thinks, text
        if answer.finish == "begun":  # a stop text ended the stream before the tokens ended
            answer.finish = "stop"

    def _tokens(
        self, answer: Answer, sampler: Sampler, limits: Limits, stop_ids: Collection[int]
    ) -> Iterator[int]:
        began = time.perf_counter()
        logits_V = self._prefill(answer)
        history = list(answer.prompt_ids)
        room = limits.max_tokens or self.session.context
        while logits_V is not None and not self._interrupted():
            id = sampler.choose(logits_V, history)
            answer.ids.append(id)
            now = time.perf_counter()
            if len(answer.ids) == 1:
                answer.read_s, began = now - began, now
            else:
                answer.write_s = now - began
            yield id
            history.append(id)
            full = self.session.length == self.session.context
            if id in stop_ids or len(answer.ids) == room or full:
                answer.finish = "stop" if id in stop_ids else "context" if full else "length"
                return
            logits_V = self.session.decode(id)
            self._read.append(id)
        answer.finish = "interrupted"

    def _prefill(self, answer: Answer) -> Logits | None:
        """Reads what is new of a prompt, a pass at a time; the logits after it, if all was read."""
        prompt, context, rows = answer.prompt_ids, self.session.context, self.session.shape.rows
        if not 0 < len(prompt) < context:
            raise UsageError(
                f"prompt: expected 1 to {context - 1} tokens, which leaves one of the context for "
                f"an answer, got {len(prompt)}",
                hint="shorten it, begin anew, or give a longer --ctx",
            )
        answer.n_reused = self._forget_what_differs(prompt)
        for begin in range(answer.n_reused, len(prompt), rows):
            part = prompt[begin : begin + rows]
            is_last = begin + len(part) == len(prompt)
            if self._interrupted():
                return None
            (logits_BV,) = self.session.read([Piece(0, part, "last" if is_last else "none")])
            self._read += part
        return np.asarray(logits_BV[0])

    def _forget_what_differs(self, prompt: Sequence[int]) -> int:
        """How many tokens of the prompt stay read; at least the last is read again."""
        same = 0
        for ours, theirs in zip(self._read, prompt[:-1], strict=False):
            if ours != theirs:
                break
            same += 1
        if same < len(self._read) and not self.session.rewinds:
            same = 0
        self.session.reset(same)
        del self._read[same:]
        return same


def chat_parts(
    template: ChatTemplate, tokenizer: ModelTokenizer, messages: Sequence[Message],
    variables: Mapping[str, Any],
) -> tuple[list[Part], bool]:  # fmt: skip
    """The prompt up to where the next answer begins, and whether it opens its thinking.

    Raises: UsageError if the template refuses the messages. InputError if it fails.
    """
    parts = template.parts(messages, tokenizer, variables)
    return parts, bool(parts) and parts[-1].text.rstrip().endswith(THINK_BEGIN)


@dataclass(slots=True, kw_only=True)
class Conversation:
    """Messages that grow by turns, and the template that makes a prompt of them."""

    template: ChatTemplate
    tokenizer: ModelTokenizer
    thinks: bool | None = None  # None: as the template has it
    messages: list[dict[str, str]] = field(default_factory=list)

    def prompt(self) -> tuple[list[int], bool]:
        """The ids up to where the next answer begins, and whether they open its thinking.

        Raises: UsageError if the template refuses the messages. InputError if it fails.
        """
        knows = self.thinks is not None and self.template.can_think
        variables = {"enable_thinking": self.thinks} if knows else {}
        parts, begun = chat_parts(self.template, self.tokenizer, self.messages, variables)
        return self.tokenizer.encode_parts(parts), begun

    @property
    def system(self) -> str | None:
        """The system message, if there is one."""
        first = self.messages[0] if self.messages else {}
        return first.get("content") if first.get("role") == "system" else None

    def instruct(self, text: str) -> None:
        """Puts a system message in the place of the first; an empty one takes it away."""
        if self.system is not None:
            del self.messages[0]
        if text:
            self.messages.insert(0, {"role": "system", "content": text})

    def say(self, text: str) -> None:
        """Adds what the user says."""
        self.messages.append({"role": "user", "content": text})

    def hear(self, answer: Answer) -> None:
        """Adds an answer, its thinking apart."""
        heard = {"role": "assistant", "content": answer.text}
        if answer.thinking:
            heard["reasoning_content"] = answer.thinking.strip()
        self.messages.append(heard)

    def take_back(self) -> bool:
        """Removes what follows the user's last message; False if there is none."""
        while self.messages and self.messages[-1]["role"] == "assistant":
            self.messages.pop()
        return bool(self.messages) and self.messages[-1]["role"] == "user"

    def clear(self) -> None:
        """Forgets all turns but the system message."""
        del self.messages[0 if self.system is None else 1 :]
