"""What `lockstep run` was asked for, and what follows from it for a prompt."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from lockstep.cli.run_display import Think
from lockstep.engine.conversation import Conversation, Limits
from lockstep.tokenizers import ChatTemplate, ModelTokenizer, Part, begin_ids

COMPLETION_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What was asked for on the command line."""

    prompt: str | None
    system: str | None
    chat_template: str | None
    think: Think | None
    raw: bool
    max_tokens: int | None
    stop: tuple[str, ...]
    ignore_eos: bool


def raw_prompt(tokenizer: ModelTokenizer, prompt: str, *, markup: bool) -> list[int]:
    """The ids of a prompt as it is, behind the beginning that the model wants."""
    return begin_ids(tokenizer) + tokenizer.encode_parts([Part(prompt, markup=markup)])


def conversation(template: ChatTemplate, tokenizer: ModelTokenizer, asked: Asked) -> Conversation:
    """A conversation that begins as it was asked for."""
    if asked.think == "off" and not template.can_think:
        print("note: this chat template cannot switch thinking off", file=sys.stderr)
    thinks = None if asked.think is None else asked.think != "off"
    chat = Conversation(template=template, tokenizer=tokenizer, thinks=thinks)
    chat.instruct(asked.system or "")
    return chat


def limits_of(asked: Asked, template: ChatTemplate | None) -> Limits:
    """What ends an answer."""
    ends = () if template is None else template.source.stop_texts
    default = COMPLETION_TOKENS if template is None else None
    return Limits(
        max_tokens=asked.max_tokens or default,
        stop_texts=(*asked.stop, *ends),
        ignore_end=asked.ignore_eos,
    )
