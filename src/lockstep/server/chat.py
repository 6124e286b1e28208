"""`/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from lockstep.engine.streaming import Thinking
from lockstep.server.events import Finish
from lockstep.server.exchange import answer_stream, answer_whole, ignored_header, read_body
from lockstep.server.gathering import Choice, Gathering
from lockstep.server.parameters import ChatBody
from lockstep.server.preparation import chat_generations
from lockstep.server.scores import Token
from lockstep.server.service import Service
from lockstep.server.tool_calls import ToolCalls
from lockstep.tokenizers import ModelTokenizer


class Voice:
    """What one answer says: thinking, content, and calls of tools."""

    def __init__(self, *, begun: bool, has_tools: bool) -> None:
        self._thinking = Thinking(begun)
        self._calls = ToolCalls() if has_tools else None

    def say(self, text: str, *, is_last: bool) -> dict[str, Any]:
        """The parts of a message that are certain with this text."""
        texts = {"reasoning_content": "", "content": ""}
        for thinks, piece in self._thinking.take(text, is_last=is_last):
            texts["reasoning_content" if thinks else "content"] += piece
        calls = list[dict[str, Any]]()
        if self._calls is not None:
            first = self._calls.n_calls
            texts["content"], found = self._calls.push(texts["content"], is_last=is_last)
            calls = [{"index": i, **call} for i, call in enumerate(found, first)]
        said: dict[str, Any] = {name: piece for name, piece in texts.items() if piece}
        return said | ({"tool_calls": calls} if calls else {})

    def end(self, reason: Finish | None) -> str | None:
        """Why it ended, as OpenAI says it."""
        has_called = self._calls is not None and self._calls.n_calls > 0
        return "tool_calls" if has_called and reason == "stop" else reason


class ChatForm:
    """Answers as messages."""

    prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(
        self, tokenizer: ModelTokenizer, voices: Sequence[Voice], *, logprobs: bool
    ) -> None:
        self._tokenizer, self._voices, self._logprobs = tokenizer, voices, logprobs

    def opening(self, index: int) -> dict[str, Any]:
        """Says who speaks."""
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def part(
        self, index: int, text: str, tokens: Sequence[Token], begin: int, reason: Finish | None
    ) -> dict[str, Any] | None:
        """More of a message; nothing while it may be the beginning of a call."""
        voice = self._voices[index]
        delta = voice.say(text, is_last=reason is not None)
        if reason is None and not delta and not (self._logprobs and tokens):
            return None
        logprobs = self._content(tokens) if reason is None else None
        end = voice.end(reason)
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": end}

    def whole(self, index: int, choice: Choice, prompt_tokens: Sequence[Token]) -> dict[str, Any]:
        """A message."""
        voice = self._voices[index]
        said = voice.say(choice.text, is_last=True)
        for call in said.get("tool_calls", ()):
            del call["index"]  # which only streams have
        content = None if said.get("tool_calls") else ""
        message = {"role": "assistant", "content": content, "refusal": None, **said}
        return {
            "index": index,
            "message": message,
            "logprobs": self._content(choice.tokens),
            "finish_reason": voice.end(choice.reason),
        }

    def _content(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        content = []
        for token in tokens:
            top = [self._entry(id, logprob) for id, logprob in token.top]
            content.append({**self._entry(token.id, token.logprob), "top_logprobs": top})
        return {"content": content, "refusal": None}

    def _entry(self, id: int, logprob: float | None) -> dict[str, Any]:
        piece = self._tokenizer.token_bytes(id)
        text = piece.decode("utf-8", "replace")
        return {"token": text, "logprob": logprob, "bytes": list(piece)}


async def chat_completions(request: Request) -> Response:
    """Answers a conversation."""
    service: Service = request.app.state.service
    body = await read_body(request, ChatBody, service.limits)
    generations, begun = await run_in_threadpool(chat_generations, service, body)
    has_tools = bool(body.tools) and body.tool_choice != "none"
    voices = [Voice(begun=begun, has_tools=has_tools) for _ in generations]
    form = ChatForm(service.served.tokenizer, voices, logprobs=bool(body.logprobs))
    gathering = Gathering(service, form, len(generations))
    answers, headers = service.open(generations), ignored_header(body)
    if not body.stream:
        return await answer_whole(request, answers, gathering.whole, headers)
    include_usage = body.stream_options is not None and body.stream_options.include_usage
    return answer_stream(answers, gathering.chunks(answers, include_usage=include_usage), headers)
