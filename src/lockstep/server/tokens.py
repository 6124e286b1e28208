"""`/tokenize`, `/detokenize` and `/tokenizer_info` as vLLM has them, which evaluators ask for."""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from lockstep.errors import LockstepError
from lockstep.server.api_error import invalid
from lockstep.server.exchange import ignored_header, read_body
from lockstep.server.parameters import DetokenizeBody, TokenizeBody
from lockstep.server.preparation import prompt_ids
from lockstep.server.service import Service
from lockstep.tokenizers import Part, begin_ids, decode


async def tokenize(request: Request) -> Response:
    """The ids of a text, in which the names of control tokens count."""
    service: Service = request.app.state.service
    body = await read_body(request, TokenizeBody, service.limits)
    tokenizer, most = service.served.tokenizer, service.limits.max_text_bytes
    n_bytes = len(body.prompt.encode("utf-8", "replace"))
    if n_bytes > most:
        message = f"expected a text of at most {most} bytes, got {n_bytes}; cut it into several"
        raise invalid("prompt", message, code="text_too_large")
    begin = begin_ids(tokenizer) if body.add_special_tokens else []
    parts = [Part(body.prompt, markup=True)]
    try:
        async with service.tokenizing:
            ids = begin + await run_in_threadpool(tokenizer.encode_parts, parts)
    except LockstepError as error:
        raise invalid("prompt", error.message) from None
    document = {"tokens": ids, "count": len(ids), "max_model_len": service.context}
    return JSONResponse(document, headers=ignored_header(body))


async def detokenize(request: Request) -> Response:
    """The text of some ids, without control tokens."""
    service: Service = request.app.state.service
    body = await read_body(request, DetokenizeBody, service.limits)
    ids = prompt_ids(service, body.tokens, "tokens")
    text = await run_in_threadpool(decode, service.served.tokenizer, ids)
    return JSONResponse({"prompt": text}, headers=ignored_header(body))


async def tokenizer_info(request: Request) -> Response:
    """What the tokenizer is, as far as a client needs to know to use it."""
    service: Service = request.app.state.service
    tokenizer, template = service.served.tokenizer, service.served.template

    def name(id: int | None) -> str | None:
        return None if id is None else tokenizer.token_bytes(id).decode("utf-8", "replace")

    return JSONResponse(
        {
            "eos_token": name(tokenizer.eos_id),
            "bos_token": name(tokenizer.bos_id),
            "vocab_size": tokenizer.vocab_size,
            "add_bos_token": tokenizer.add_bos,
            "chat_template": None if template is None else template.source.text,
            "model_max_length": service.context,
        }
    )
