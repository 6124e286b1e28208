"""What every kind of text answer shares: events to documents, whole or in chunks."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from lockstep import __version__
from lockstep.server.events import Finish, Finished, PromptRead, Spoke
from lockstep.server.scores import Token
from lockstep.server.service import Answers, Service


@dataclass
class Choice:
    """One answer, as far as it has come."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    reason: Finish | None = None


class Form(Protocol):
    """How one endpoint spells its answers."""

    prefix: str  # of the id
    whole_object: str
    chunk_object: str

    def opening(self, index: int) -> dict[str, Any] | None:
        """The choice that comes before any text of it, in a stream."""

    def part(
        self, index: int, text: str, tokens: Sequence[Token], begin: int, reason: Finish | None
    ) -> dict[str, Any] | None:
        """A choice of a stream, if there is news; `begin` is how many characters came before."""

    def whole(self, index: int, choice: Choice, prompt_tokens: Sequence[Token]) -> dict[str, Any]:
        """A choice of a whole answer."""


class Usage:
    """How many tokens a request cost; a prompt counts once, however many answers it has."""

    def __init__(self, answers: Answers, n: int) -> None:
        self._prompt = sum(answers.n_prompt_tokens[::n])
        self._n = n
        self._completion = self._cached = 0

    def take(self, event: object) -> None:
        """Counts what an event says."""
        if isinstance(event, Finished):
            self._completion += event.n_tokens
        elif isinstance(event, PromptRead) and event.index % self._n == 0:
            self._cached += event.n_cached

    @property
    def document(self) -> dict[str, Any]:
        """As OpenAI spells it."""
        return {
            "prompt_tokens": self._prompt,
            "completion_tokens": self._completion,
            "total_tokens": self._prompt + self._completion,
            "prompt_tokens_details": {"cached_tokens": self._cached},
        }


class Gathering:
    """The answer to one request, in its form."""

    def __init__(self, service: Service, form: Form, n: int) -> None:
        self._form, self._n = form, n
        self._head = {
            "id": f"{form.prefix}-{uuid.uuid4().hex}",
            "object": form.whole_object,
            "created": service.now(),
            "model": service.served.name,
            "system_fingerprint": f"lockstep-{__version__}",
        }

    async def whole(self, answers: Answers) -> dict[str, Any]:
        """One document.

        Raises: ApiError if the request failed.
        """
        usage = Usage(answers, self._n)
        choices = [Choice() for _ in answers.n_prompt_tokens]
        prompts: list[Sequence[Token]] = [() for _ in choices]
        async for event in answers.events():
            usage.take(event)
            if isinstance(event, PromptRead):
                prompts[event.index] = event.tokens
            elif isinstance(event, Spoke):
                choices[event.index].text += event.text
                choices[event.index].tokens += event.tokens
            elif isinstance(event, Finished):
                choices[event.index].reason = event.reason
        documents = [
            self._form.whole(i, choice, prompt)
            for i, (choice, prompt) in enumerate(zip(choices, prompts, strict=True))
        ]
        return {**self._head, "choices": documents, "usage": usage.document}

    async def chunks(
        self, answers: Answers, *, include_usage: bool
    ) -> AsyncIterator[dict[str, Any]]:
        """A document for each piece of news.

        Raises: ApiError if the request failed.
        """
        usage = Usage(answers, self._n)
        head = {**self._head, "object": self._form.chunk_object}
        tail: dict[str, Any] = {"usage": None} if include_usage else {}
        begins = [0 for _ in answers.n_prompt_tokens]
        for index in range(len(begins)):
            if (opening := self._form.opening(index)) is not None:
                yield {**head, "choices": [opening], **tail}
        async for event in answers.events():
            usage.take(event)
            if isinstance(event, Spoke):
                begin = begins[event.index]
                begins[event.index] += len(event.text)
                part = self._form.part(event.index, event.text, event.tokens, begin, None)
                if part is not None:
                    yield {**head, "choices": [part], **tail}
            elif isinstance(event, Finished):
                part = self._form.part(event.index, "", (), begins[event.index], event.reason)
                yield {**head, "choices": [part], **tail}
        if include_usage:
            yield {**head, "choices": [], "usage": usage.document}
