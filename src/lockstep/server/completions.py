"""`/v1/completions`."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from lockstep.server.events import Finish
from lockstep.server.exchange import answer_stream, answer_whole, ignored_header, read_body
from lockstep.server.gathering import Choice, Gathering
from lockstep.server.parameters import CompletionBody
from lockstep.server.preparation import completion_generations
from lockstep.server.scores import Token
from lockstep.server.service import Service
from lockstep.tokenizers import ModelTokenizer, decode


class CompletionForm:
    """Answers as text, behind their prompts if these are to be echoed."""

    prefix = "cmpl"
    whole_object = chunk_object = "text_completion"

    def __init__(self, tokenizer: ModelTokenizer, echoed: Sequence[str], *, logprobs: bool) -> None:
        self._tokenizer, self._echoed, self._logprobs = tokenizer, echoed, logprobs

    def opening(self, index: int) -> None:
        """Nothing: the first text opens it."""

    def part(
        self, index: int, text: str, tokens: Sequence[Token], begin: int, reason: Finish | None
    ) -> dict[str, Any]:
        """More of a text."""
        logprobs = self._lists(tokens, begin) if reason is None else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def whole(self, index: int, choice: Choice, prompt_tokens: Sequence[Token]) -> dict[str, Any]:
        """A text."""
        return {
            "index": index,
            "text": (self._echoed[index] if self._echoed else "") + choice.text,
            "logprobs": self._lists([*prompt_tokens, *choice.tokens], 0),
            "finish_reason": choice.reason,
        }

    def _lists(self, tokens: Sequence[Token], begin: int) -> dict[str, Any] | None:
        """Lists of one entry for each token; offsets are those in the text of the answer."""
        if not self._logprobs:
            return None
        spellings = [self._spelling(token.id) for token in tokens]
        offsets, decoder = [], codecs.getincrementaldecoder("utf-8")("replace")
        for token in tokens:
            offsets.append(begin)
            if not self._tokenizer.is_control(token.id):
                begin += len(decoder.decode(self._tokenizer.token_bytes(token.id)))
        return {
            "tokens": spellings,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [self._top(token) for token in tokens],
            "text_offset": offsets,
        }

    def _top(self, token: Token) -> dict[str, float] | None:
        """The likeliest tokens, and always the one that came."""
        if token.logprob is None:
            return None
        found = dict[str, float]()
        for id, logprob in (*token.top, (token.id, token.logprob)):
            found.setdefault(self._spelling(id), logprob)
        return found

    def _spelling(self, id: int) -> str:
        """The token as text; one that is not whole characters by its bytes, as OpenAI does it."""
        piece = self._tokenizer.token_bytes(id)
        try:
            return piece.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


async def completions(request: Request) -> Response:
    """Goes on with texts."""
    service: Service = request.app.state.service
    body = await read_body(request, CompletionBody, service.limits)
    generations = await run_in_threadpool(completion_generations, service, body)
    tokenizer = service.served.tokenizer
    n = body.n or 1
    prompts = body.prompt if body.echo else []
    echoed = [_text(tokenizer, prompt) for prompt in prompts for _ in range(n)]
    form = CompletionForm(tokenizer, echoed, logprobs=body.logprobs is not None)
    gathering = Gathering(service, form, n)
    answers, headers = service.open(generations), ignored_header(body)
    if not body.stream:
        return await answer_whole(request, answers, gathering.whole, headers)
    include_usage = body.stream_options is not None and body.stream_options.include_usage
    return answer_stream(answers, gathering.chunks(answers, include_usage=include_usage), headers)


def _text(tokenizer: ModelTokenizer, prompt: str | list[int]) -> str:
    return prompt if isinstance(prompt, str) else decode(tokenizer, prompt)
