"""Conversations as prompts: the model's own chat template, or one that the user names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lockstep.errors import InputError, UsageError, nearest
from lockstep.formats.locate.bounded import opened
from lockstep.tokenizers.chat_renderer import ChatRenderer
from lockstep.tokenizers.hf_tokenizer import NAMED_TOKENS, token_text, tokenizer_settings
from lockstep.tokenizers.model_tokenizer import ModelTokenizer, Part, check_unicode

DEFAULT = "default"
WITH_TOOLS = "tool_use"  # the name of a template that takes the place of the default for tools
ADDITIONAL_TEMPLATES = "additional_chat_templates"  # a folder in that of the model
MAX_TEMPLATE_BYTES = 1 << 20
_BUILT_IN = Path(__file__).parent / "chat_templates"
BUILT_IN = tuple(sorted(path.stem for path in _BUILT_IN.glob("*.jinja")))
# What ends an answer under a built-in template, for a model that has no such token.
_TURN_ENDS = {
    "chatml": "<|im_end|>", "gemma": "<end_of_turn>", "llama3": "<|eot_id|>", "plain": "\nUser:",
}  # fmt: skip
# Around the name of a control token in a user's text, on its way through the template.
# They are noncharacters for private use, which no text for a model has.
_BEGIN, _END = "\U000f0000", "\U000f0001"

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TemplateSource:
    """The text of a template and where it is from."""

    text: str
    where: str
    stop_texts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTemplates:
    """What a model says of its chats: its templates by name, and the tokens that they may use."""

    where: str
    named: Mapping[str, str] = field(default_factory=dict)
    tokens: Mapping[str, str] = field(default_factory=dict)  # bos_token, eos_token, ... as text


def templates_of_gguf(
    metadata: Mapping[str, Any], tokenizer: ModelTokenizer, where: str
) -> ModelTemplates:
    """The templates in the metadata of a GGUF file."""
    prefix = "tokenizer.chat_template"
    found = {
        key.removeprefix(prefix).removeprefix(".") or DEFAULT: value
        for key, value in metadata.items()
        if key == prefix or key.startswith(prefix + ".")
    }
    named = _texts(found, f"{where}, {prefix}")
    ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
    tokens = {
        name: tokenizer.token_bytes(id).decode("utf-8", "replace")
        for name, id in ids.items()
        if id is not None
    }
    return ModelTemplates(where=where, named=named, tokens=tokens)


def _texts(found: Mapping[str, object], where: str) -> dict[str, str]:
    """The templates by name, which must be texts."""
    texts = {name: text for name, text in found.items() if isinstance(text, str)}
    if wrong := found.keys() - texts.keys():
        name = min(wrong)
        raise InputError(
            f"{where} ({name}): expected a text, got {found[name]!r:.60}",
            hint="choose a template with --chat-template",
        )
    return texts


def templates_of_directory(path: Path) -> ModelTemplates:
    """The templates of a Hugging Face directory: in their own files, or in tokenizer_config.json.

    Raises: InputError if a file is damaged, or a template is no text.
    """
    where = path / "tokenizer_config.json"
    config = tokenizer_settings(path)
    stated = config.get("chat_template")
    if isinstance(stated, dict):  # of templates by their names
        found = dict(stated)
    elif isinstance(stated, list):  # of templates with names
        found = {str(t.get("name")): t.get("template") for t in stated if isinstance(t, dict)}
    else:
        found = {} if stated is None else {DEFAULT: stated}
    default = path / "chat_template.jinja"
    if default.exists():  # then nothing of tokenizer_config.json counts
        found = {DEFAULT: _file(default)}
    named = _texts(found, f"{where}, chat_template")
    files = sorted((path / ADDITIONAL_TEMPLATES).glob("*.jinja"))
    named |= {file.stem: _file(file) for file in files}
    tokens = {
        name: text for name in NAMED_TOKENS if (text := token_text(config.get(name))) is not None
    }
    return ModelTemplates(where=str(path), named=named, tokens=tokens)


def choose_template(model: ModelTemplates, wanted: str | None) -> TemplateSource:
    """The template of this name or in this file; without one, the model's own.

    Raises: UsageError if there is none. InputError if a file cannot be read.
    """
    if wanted is None and DEFAULT in model.named:
        return TemplateSource(model.named[DEFAULT], f"{model.where} (chat template)")
    if wanted is None:
        raise UsageError(
            f"{model.where}: expected a model with a chat template, got one without",
            hint=f"give --chat-template ({', '.join(BUILT_IN)} or a file), or --raw",
        )
    if wanted in model.named:
        return TemplateSource(model.named[wanted], f"{model.where} (chat template {wanted})")
    if wanted in BUILT_IN:
        text = (_BUILT_IN / f"{wanted}.jinja").read_text(encoding="utf-8")
        return TemplateSource(text, f"chat template {wanted}", (_TURN_ENDS[wanted],))
    path = Path(wanted)
    if path.suffix or path.name != wanted or path.exists():
        return TemplateSource(_file(path), str(path))
    known = (*BUILT_IN, *model.named)
    raise UsageError(
        f"--chat-template: expected one of {', '.join(known)}, or a file, got {wanted!r:.60}",
        hint=f"{nearest(wanted, known)}name a file with a '/' or its ending",
    )


def _file(path: Path) -> str:
    with opened(path) as (file, _):
        data = file.read(MAX_TEMPLATE_BYTES + 1)
    if len(data) > MAX_TEMPLATE_BYTES:
        raise InputError(
            f"{path}: expected a chat template of at most {MAX_TEMPLATE_BYTES} bytes, got more",
            hint="check that this is the file you mean",
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: expected a readable chat template, got: {error}",
            hint="check that this is the file you mean",
        ) from error


class ChatTemplate:
    """Messages to the prompt of one model.

    A user's text cannot write control tokens: their names in it go through the template between two
    marks, and are plain text in the prompt.
    """

    def __init__(
        self, source: TemplateSource, model: ModelTemplates, renderer: ChatRenderer
    ) -> None:
        self.source = source
        self._tokens = dict(model.tokens)
        self._renderer = renderer
        self.reads = renderer.reads(source.text, source.where)
        self._with_tools = None
        if source.text == model.named.get(DEFAULT) and WITH_TOOLS in model.named:
            self._with_tools = choose_template(model, WITH_TOOLS)
            self.reads |= renderer.reads(self._with_tools.text, self._with_tools.where)

    @property
    def can_think(self) -> bool:
        """Whether the template lets thinking be switched on and off."""
        return "enable_thinking" in self.reads

    def render(
        self, messages: Sequence[Message], variables: Mapping[str, Any] = MappingProxyType({})
    ) -> str:
        """The prompt as text, as transformers' `apply_chat_template` has it.

        `add_generation_prompt` is true unless it is among the variables. With tools it is the
        model's template for these, if it has one.

        Raises: UsageError if the template refuses the messages. InputError if it fails.
        """
        source = self.source
        if self._with_tools is not None and variables.get("tools"):
            source = self._with_tools
        # Clients send null for what there is not, and templates print it.
        said = [{k: v for k, v in message.items() if v is not None} for message in messages]
        return self._renderer.render(
            source.text,
            {"tools": None, "documents": None, "add_generation_prompt": True, **self._tokens,
             **variables, "messages": said},
            source.where,
        )  # fmt: skip

    def parts(
        self,
        messages: Sequence[Message],
        tokenizer: ModelTokenizer,
        variables: Mapping[str, Any] = MappingProxyType({}),
    ) -> list[Part]:
        """The prompt as parts for `ModelTokenizer.encode_parts`.

        Raises: UsageError if the template refuses the messages. InputError if it fails, or a
        message is not valid text.
        """
        names = "|".join(map(re.escape, sorted(tokenizer.control_names, key=len, reverse=True)))
        text = self.render([_marked(m, names) for m in messages], variables)
        # A template that cuts its messages may lose one of the two marks.
        written = rf"{_BEGIN}({names}){_END}?|({names}){_END}" if names else r"(?!)"
        parts: list[Part] = []
        at = 0
        for found in re.finditer(written, text):
            parts.append(Part(_without_marks(text[at : found.start()]), markup=True))
            parts.append(Part(found[1] or found[2]))
            at = found.end()
        parts.append(Part(_without_marks(text[at:]), markup=True))
        return [part for part in parts if part.text]


def _marked(value: Any, names: str) -> Any:
    """The same message with marks around the names of control tokens."""
    if isinstance(value, str):
        check_unicode(value, "message")
        value = _without_marks(value)
        return re.sub(names, lambda found: f"{_BEGIN}{found[0]}{_END}", value) if names else value
    if isinstance(value, Mapping):
        return {key: _marked(item, names) for key, item in value.items()}
    if isinstance(value, Iterable):
        return [_marked(item, names) for item in value]
    return value


def _without_marks(text: str) -> str:
    return text.replace(_BEGIN, "").replace(_END, "")
