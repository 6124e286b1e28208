"""The commands of a chat, `/help` and so on."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from lockstep.artifacts import expanded
from lockstep.cli.run_display import Think
from lockstep.engine.conversation import Answer, Conversation, Limits, Speaker
from lockstep.engine.sampling import Sampler
from lockstep.errors import InputError, UsageError, nearest
from lockstep.formats.atomic import replacing
from lockstep.formats.json_text import read_json_object
from lockstep.formats.locate.bounded import is_writable

COMMANDS = {
    "help": "/help               this list",
    "clear": "/clear              forget the turns, keep the system message",
    "system": "/system [TEXT]      show the system message, or set it; - takes it away",
    "retry": "/retry              answer the last message once more",
    "save": "/save FILE          write the conversation to a new file",
    "load": "/load FILE          go on with a saved conversation",
    "set": "/set [NAME VALUE]   show the settings, or change one",
    "stats": "/stats              tokens and speed of the last answer",
    "exit": "/exit               leave, like Ctrl-D",
}
_SAMPLING: dict[str, tuple[str, Callable[[str], Any]]] = {
    "temperature": ("temperature", float),
    "top-k": ("top_k", int),
    "top-p": ("top_p", float),
    "min-p": ("min_p", float),
    "repeat-penalty": ("repeat_penalty", float),
    "repeat-last-n": ("repeat_window", int),
    "seed": ("seed", int),
}
_ROLES = ("system", "user", "assistant")


@dataclass(slots=True, kw_only=True)
class Commands:
    """What a chat can be told to change."""

    speaker: Speaker
    chat: Conversation | None
    sampler: Sampler
    limits: Limits
    think: Think | None
    answer: Answer | None = None
    asks_again: bool = False
    leaves: bool = False

    def obey(self, name: str, rest: str) -> str:
        """Does what a command says; returns what to tell the user.

        Raises: UsageError or InputError if it cannot be done.
        """
        text: str = getattr(self, f"_{name}")(rest)
        return text

    def _help(self, rest: str) -> str:
        return "\n".join([*COMMANDS.values(), "A backslash at the end of a line goes on below."])

    def _exit(self, rest: str) -> str:
        self.leaves = True
        return ""

    def _talk(self, command: str) -> Conversation:
        if self.chat is None:
            raise UsageError(
                f"/{command}: expected a chat, got a model that goes on from each line as it is",
                hint="start again with --chat-template",
            )
        return self.chat

    def _clear(self, rest: str) -> str:
        self._talk("clear").clear()
        return "cleared"

    def _system(self, rest: str) -> str:
        chat = self._talk("system")
        if not rest:
            return chat.system or "no system message"
        chat.instruct("" if rest == "-" else rest)
        return "set" if rest != "-" else "taken away"

    def _retry(self, rest: str) -> str:
        if self.answer is None or (self.chat is not None and not self.chat.take_back()):
            raise UsageError("/retry: expected an answer before, got none", hint="ask something")
        self.asks_again = True
        return ""

    def _save(self, rest: str) -> str:
        chat = self._talk("save")
        path = _path("save", rest)
        document = json.dumps({"messages": chat.messages}, ensure_ascii=False, indent=2) + "\n"
        try:
            if os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            with replacing(path) as temporary:  # whole, or not at all
                temporary.write_text(document, encoding="utf-8")
        except OSError as error:
            raise UsageError(
                f"{path}: expected a new file that can be written, got: {error.strerror}",
                hint="choose another name",
            ) from error
        return f"{len(chat.messages)} messages written to {path}"

    def _load(self, rest: str) -> str:
        chat = self._talk("load")
        path = _path("load", rest)
        hint = "load a file that /save wrote"
        try:
            messages = read_json_object(path).get("messages")
        except InputError as error:
            raise InputError(error.message, hint=hint) from error
        if not isinstance(messages, list) or not all(map(_is_message, messages)):
            raise InputError(
                f"{path}: expected messages of {', '.join(_ROLES)} with texts, got others",
                hint=hint,
            )
        chat.messages[:] = messages
        return f"{len(messages)} messages"

    def _set(self, rest: str) -> str:
        name, _, value = rest.partition(" ")
        name = name.lstrip("-").replace("_", "-")
        known = (*_SAMPLING, "max-tokens", "think")
        if not name:
            return "\n".join(f"{each} {self._shown(each)}" for each in known)
        if name not in known:
            raise UsageError(
                f"/set: expected one of {', '.join(known)}, got {name!r:.40}",
                hint=f"{nearest(name, known)}/set shows them",
            )
        try:
            self._change(name, value.strip())
        except ValueError as error:
            raise UsageError(
                f"/set {name}: expected a number, got {value!r:.40}", hint="/set shows the settings"
            ) from error
        return f"{name} {self._shown(name)}"

    def _shown(self, name: str) -> str:
        if name == "max-tokens":
            return str(self.limits.max_tokens or "what the context holds")
        if name == "think":
            return self.think or "show"
        return str(getattr(self.sampler.sampling, _SAMPLING[name][0]))

    def _change(self, name: str, value: str) -> None:
        if name in _SAMPLING:
            field, kind = _SAMPLING[name]
            try:
                changed = replace(self.sampler.sampling, **{field: kind(value)})
            except UsageError as error:
                raise UsageError(f"/set {error.message}", hint="give another number") from error
            self.sampler = Sampler(changed)
        elif name == "max-tokens":
            if int(value) < 1:
                raise UsageError(
                    f"/set max-tokens: expected 1 or more, got {value}", hint="give another number"
                )
            self.limits = replace(self.limits, max_tokens=int(value))
        else:
            modes = dict(zip(get_args(Think), get_args(Think), strict=True))
            if value not in modes:
                raise UsageError(
                    f"/set think: expected one of {', '.join(modes)}, got {value!r:.40}",
                    hint="give one of these",
                )
            self.think = modes[value]
            if self.chat is not None:
                self.chat.thinks = value != "off"

    def _stats(self, rest: str) -> str:
        session = self.speaker.session
        lines = [f"context: {session.length} of {session.context} tokens"]
        if (answer := self.answer) is not None:
            lines += [
                f"prompt: {len(answer.prompt_ids)} tokens, {answer.n_reused} of them read before"
                + _rate(answer.read_tok_s),
                f"answer: {len(answer.ids)} tokens{_rate(answer.write_tok_s)}",
            ]
        return "\n".join(lines)


def _rate(tok_s: float | None) -> str:
    return "" if tok_s is None else f", {tok_s:.1f} tokens/s"


def _path(command: str, rest: str) -> Path:
    if not rest:
        raise UsageError(f"/{command}: expected the name of a file, got none",
                         hint=f"for example /{command} chat.json")  # fmt: skip
    return expanded(rest)


def _is_message(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.get("role") in _ROLES
        and all(isinstance(text, str) and is_writable(text) for text in value.values())
        and "content" in value
    )
