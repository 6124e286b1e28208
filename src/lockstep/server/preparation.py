"""From the parameters of a request to what its sequences are asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, Literal

from lockstep.engine.conversation import chat_parts
from lockstep.engine.sampling import Sampling
from lockstep.errors import LockstepError
from lockstep.server.api_error import ApiError, invalid
from lockstep.server.constraint import (
    Constraint,
    choice_grammar,
    json_grammar,
    lark_grammar,
    regex_grammar,
)
from lockstep.server.generation import Generation, Penalties
from lockstep.server.parameters import (
    MAX_PROMPTS,
    ChatBody,
    CompletionBody,
    EmbeddingBody,
    Sampled,
)
from lockstep.server.service import Service
from lockstep.tokenizers import ChatTemplate, begin_ids, end_ids

COMPLETION_TOKENS = 16  # OpenAI's default for /v1/completions
# Variables of a template that a request gives in another way, or that Jinja keeps for itself.
_RESERVED = ("messages", "tools", "self")


def chat_generations(service: Service, body: ChatBody) -> tuple[list[Generation], bool]:
    """The answers to a conversation, and whether the template has opened their thinking.

    Raises: ApiError naming the parameter that cannot be done.
    """
    check_model(service, body.model)
    if body.top_logprobs is not None and not body.logprobs:
        raise invalid("top_logprobs", "expected logprobs to be true beside it")
    if body.max_tokens == 0:
        raise invalid("max_tokens", "expected 1 or more, got 0")
    limit = body.max_completion_tokens or body.max_tokens
    n_top = (body.top_logprobs or 0) if body.logprobs else None
    template = service.served.template
    if template is None:
        raise invalid("messages", "expected a model with a chat template; use /v1/completions")
    ids, begun = _conversation(service, template, body)
    stop_texts = template.source.stop_texts
    found = _choices(
        service, body, [ids], limit, param="messages", n_top=n_top, stop_texts=stop_texts
    )
    return found, begun


def _conversation(
    service: Service, template: ChatTemplate, body: ChatBody
) -> tuple[list[int], bool]:
    """The ids up to where the answer begins, and whether it begins inside of thinking."""
    tokenizer = service.served.tokenizer
    variables = dict(body.chat_template_kwargs or {})
    reserved = next((name for name in _RESERVED if name in variables), None)
    if reserved is not None:
        raise invalid(
            "chat_template_kwargs", f"expected variables other than {reserved}, which is reserved"
        )
    if body.tools and body.tool_choice != "none":
        if "tools" not in template.reads:
            raise invalid("tools", "expected none, because this model's template knows no tools")
        variables["tools"] = [tool.model_dump() for tool in body.tools]
    messages = [message.model_dump(exclude_unset=True) for message in body.messages]
    try:
        parts, begun = chat_parts(template, tokenizer, messages, variables)
        _check_length(service, "".join(part.text for part in parts), "messages")
        return tokenizer.encode_parts(parts), begun
    except LockstepError as error:
        raise invalid("messages", error.message) from None


def completion_generations(service: Service, body: CompletionBody) -> list[Generation]:
    """The completions of each prompt.

    Raises: ApiError naming the parameter that cannot be done.
    """
    check_model(service, body.model)
    if body.suffix:
        raise invalid("suffix", "expected none, because text is only generated at the end")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise invalid("best_of", f"expected the same as n, {body.n or 1}, got {body.best_of}")
    if body.stream and body.echo:
        raise invalid("echo", "expected false beside stream")
    limit = COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    if limit == 0 and not body.echo:
        raise invalid("max_tokens", "expected 1 or more, or echo to be true, got 0")
    n_answers = len(body.prompt) * (body.n or 1)
    if n_answers > MAX_PROMPTS:
        raise invalid("n", f"expected at most {MAX_PROMPTS} answers in all, got {n_answers}")
    # One by one: the first that does not fit ends it.
    prompts = (prompt_ids(service, prompt, "prompt") for prompt in body.prompt)
    scores_prompt = bool(body.echo) and body.logprobs is not None
    return _choices(
        service, body, prompts, limit, param="prompt", n_top=body.logprobs,
        scores_prompt=scores_prompt, tells_end=True,
    )  # fmt: skip


def embedding_generations(service: Service, body: EmbeddingBody) -> list[Generation]:
    """The readings that embed each input.

    Raises: ApiError naming the parameter that cannot be done.
    """
    check_model(service, body.model)
    if body.dimensions is not None:
        raise invalid("dimensions", "expected none, because this model's width is fixed")
    pooling: Literal["last", "mean"] = body.pooling or "last"
    found = []
    for text in body.input:
        ids = prompt_ids(service, text, "input")
        if isinstance(text, str):  # the last token is the one that sums up the text
            ids = ids + end_ids(service.served.tokenizer)
        _check_room(service, len(ids), 0, "input")
        found.append(Generation(prompt=tuple(ids), pooling=pooling))
    return found


def check_model(service: Service, name: str | None) -> None:
    """Insists that the model asked for is the one that is served.

    Raises: ApiError 404.
    """
    if name is not None and name != service.served.name:
        message = (
            f"model: expected {service.served.name}, as GET /v1/models lists it, got {name:.80}; "
            "`lockstep serve --name` gives it another name"
        )
        raise ApiError(404, message, code="model_not_found", param="model")


def prompt_ids(service: Service, prompt: str | list[int], param: str) -> list[int]:
    """The ids of a prompt that comes as text or as ids.

    Raises: ApiError if the text or an id is outside the vocabulary, or there is none.
    """
    if isinstance(prompt, str):
        tokenizer = service.served.tokenizer
        _check_length(service, prompt, param)
        try:
            ids = begin_ids(tokenizer) + tokenizer.encode(prompt)
        except LockstepError as error:
            raise invalid(param, error.message) from None
        if not ids:
            raise invalid(param, "expected a text of at least one token, got an empty one")
        return ids
    n_vocab = service.served.session.n_vocab
    wrong = next((id for id in prompt if not 0 <= id < n_vocab), None)
    if wrong is not None:
        raise invalid(param, f"expected token ids from 0 to {n_vocab - 1}, got {wrong}")
    return prompt


def _choices(
    service: Service, body: Sampled, prompts: Iterable[list[int]], limit: int | None, *,
    param: str, n_top: int | None, scores_prompt: bool = False, tells_end: bool = False,
    stop_texts: tuple[str, ...] = (),
) -> list[Generation]:  # fmt: skip
    constraint = _constraint(service, body)
    penalties = _penalties(service, body)
    seed = int.from_bytes(os.urandom(8), "little") if body.seed is None else body.seed
    found = []
    for ids in prompts:
        _check_room(service, len(ids), 1 if limit is None else limit, param)
        for i in range(body.n or 1):
            found.append(
                Generation(
                    prompt=tuple(ids),
                    max_tokens=service.context - len(ids) if limit is None else limit,
                    sampling=_sampling(body, (seed + i) % 2**64),
                    penalties=penalties,
                    stop_texts=(*body.stop, *stop_texts),
                    ignores_eos=bool(body.ignore_eos),
                    constraint=constraint,
                    n_top=n_top,
                    scores_prompt=scores_prompt,
                    tells_end=tells_end,
                )
            )
    return found


def _check_length(service: Service, text: str, param: str) -> None:
    """Refuses a text that cannot fit, before seconds go into its tokens.

    Raises: ApiError.
    """
    n_bytes = len(text.encode("utf-8", "replace"))
    if n_bytes <= service.context or (most := service.served.tokenizer.most_bytes) is None:
        return
    least = -(-n_bytes // most)
    if least > service.context:
        raise invalid(
            param,
            f"expected at most {service.context} tokens together with the answer, the context of "
            f"this server, got a text of {n_bytes} bytes, which are at least {least} tokens",
            code="context_length_exceeded",
        )


def _check_room(service: Service, n_prompt: int, n_answer: int, param: str) -> None:
    if n_prompt + n_answer > service.context:
        raise invalid(
            param,
            f"expected at most {service.context} tokens together with the answer, the context of "
            f"this server, got {n_prompt} and {n_answer} for the answer",
            code="context_length_exceeded",
        )


def _sampling(body: Sampled, seed: int) -> Sampling:
    """OpenAI's defaults where it has any: a temperature of 1."""
    defaults = Sampling()
    given: dict[str, Any] = {
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "top_k": max(body.top_k or 0, 0),
        "top_p": body.top_p,
        "min_p": body.min_p,
        "repeat_penalty": body.repeat_penalty,
        "repeat_window": body.repeat_last_n,
        "seed": seed,
    }
    known = {k: getattr(defaults, k) if v is None else v for k, v in given.items()}
    return Sampling(**known)


def _penalties(service: Service, body: Sampled) -> Penalties:
    n_vocab, bias = service.served.session.n_vocab, {}
    for name, value in (body.logit_bias or {}).items():
        is_short = len(name) <= len(str(n_vocab))  # Python reads no number of any length
        if not (is_short and name.isascii() and name.isdigit() and int(name) < n_vocab):
            raise invalid("logit_bias", f"expected ids from 0 to {n_vocab - 1}, got {name!r:.40}")
        bias[int(name)] = value
    return Penalties(
        bias=bias, frequency=body.frequency_penalty or 0.0, presence=body.presence_penalty or 0.0
    )


def _constraint(service: Service, body: Sampled) -> Callable[[], Constraint] | None:
    """The one grammar that a request asks for, in one of the spellings that are in use."""
    asked = [(name, make) for name, make in _grammars(body) if make is not None]
    if not asked:
        return None
    if len(asked) > 1:
        names = " and ".join(name for name, _ in asked)
        raise invalid(asked[1][0], f"expected one grammar, got {names}")
    name, make = asked[0]
    if body.ignore_eos:
        raise invalid("ignore_eos", f"expected false beside {name}, whose end is the end token")
    try:
        return service.constraints.compile(make())
    except (LockstepError, ValueError) as error:
        message = str(getattr(error, "message", error)).removeprefix(f"{name}: ")
        raise invalid(name, message, code="invalid_grammar") from None


def _grammars(body: Sampled) -> list[tuple[str, Callable[[], str] | None]]:
    def made(make: Callable[[Any], str], value: Any) -> Callable[[], str] | None:
        return None if value is None else lambda: make(value)

    return [
        ("response_format", _format_grammar(body)),
        ("grammar", made(lark_grammar, body.grammar)),
        ("regex", made(regex_grammar, body.regex)),
        ("guided_json", made(json_grammar, body.guided_json)),
        ("guided_grammar", made(lark_grammar, body.guided_grammar)),
        ("guided_regex", made(regex_grammar, body.guided_regex)),
        ("guided_choice", made(choice_grammar, body.guided_choice)),
    ]


def _format_grammar(body: Sampled) -> Callable[[], str] | None:
    form = body.response_format
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return lambda: json_grammar({"type": "object"})
    if form.type == "json_schema":
        schema = (form.json_schema or {}).get("schema")
        if not isinstance(schema, dict):
            raise invalid("response_format.json_schema.schema", "expected a JSON schema")
        return lambda: json_grammar(schema)
    value, make = form.value, lark_grammar if form.type == "grammar" else regex_grammar
    if value is None:
        raise invalid("response_format.value", f"expected the {form.type}")
    return lambda: make(value)
