"""What a run goes by and no node shows: how long a text may be, and the side of it that is text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from lockstep.artifacts import Check
from lockstep.engine.source import Source
from lockstep.engine.text import open_templates, open_tokenizer
from lockstep.errors import InputError
from lockstep.proof.compare_tokens import token_differences
from lockstep.tokenizers import ModelTokenizer, begin_ids
from lockstep.tokenizers.vocabulary import SPACE

_SHOWN = 40  # characters of a chat template from where it differs


@dataclass(frozen=True, slots=True)
class _Text:
    """The tokenizer of a side, its chat template, and the tokens that this writes by name."""

    tokenizer: ModelTokenizer
    template: str
    written: Mapping[str, str]

    @classmethod
    def of(cls, source: Source) -> _Text:
        tokenizer = open_tokenizer(source)
        templates = open_templates(source, tokenizer)
        template = templates.named.get("default", "")
        names = ("bos_token", "eos_token")
        written = {name: templates.tokens.get(name, "") for name in names if name in template}
        return cls(tokenizer, template, written)


def metadata_check(left: Source, right: Source) -> Check:
    """Whether a run of one is a run of the other, beyond what the nodes compute.

    Rope, windows and norms are attributes of nodes, and compared there. Tokenizers are compared
    where the original has one: what a token is, the merges, and how plain text is split. All text
    is nowhere split the same to the last character (llama.cpp normalises none).
    """
    pairs = [("context_length", left.model.config.context, right.model.config.context)]
    found, reason = list(_differing(pairs)), ""
    n_facts = len(pairs)
    try:
        theirs = _Text.of(right)
    except InputError as error:
        reason = f"tokens and chat template were not compared: {_first_line(error)}"
    else:
        facts = list(_text_differences(left, theirs))
        n_facts += len(facts)
        found += filter(None, facts)
    return Check.measured(
        id="metadata", name="metadata that differ", against="the original", compared=n_facts,
        unit="facts", figure=len(found), relation="==", bound=0,
        reason="; ".join([*found, *([reason] if reason else [])]),
    )  # fmt: skip


def _text_differences(left: Source, theirs: _Text) -> Iterator[str]:
    """For each fact about text how it differs, or nothing."""
    try:
        ours = _Text.of(left)
    except InputError as error:
        yield f"the original has a tokenizer, this has none that can be read: {_first_line(error)}"
        return
    a, b = ours.tokenizer, theirs.tokenizer
    facts = [
        ("tokens before a text", begin_ids(a), begin_ids(b)),
        ("token behind a text", a.last_id, b.last_id),
        *_named_tokens(a, b),
        ("tokens that end an answer", sorted(a.stop_ids), sorted(b.stop_ids)),
        ("tokens that the chat template writes", ours.written, theirs.written),
    ]
    for fact in facts:
        yield next(_differing([fact]), "")
    yield _template_difference(ours.template, theirs.template)
    pieces = _piece_difference(a, b)
    yield pieces
    if not pieces:  # else each text that has them is another one, too
        yield from token_differences(a, b)


def _named_tokens(
    ours: ModelTokenizer, theirs: ModelTokenizer
) -> Iterator[tuple[str, int | None, int | None]]:
    """The tokens that metadata name, as far as the original does.

    Of tokens that are no added ones, or that tokenizer_config.json does not name, llama.cpp's
    converter writes none or what config.json says, of which a run makes nothing. As the end token
    it writes what tokenizer.json puts behind a text, and the other one as the end of a turn.
    Source: SpecialVocab of https://github.com/ggml-org/llama.cpp gguf-py/gguf/vocab.py
    """
    for name in ("bos", "eos", "unknown"):
        a, b = (getattr(side, f"{name}_id") for side in (ours, theirs))
        if name == "eos" and a == theirs.last_id is not None:
            b = a
        if b is not None and theirs.is_control(b):
            yield f"{name}_token_id", a, b


def _differing(facts: list[tuple[str, Any, Any]]) -> Iterator[str]:
    for name, ours, theirs in facts:
        if ours != theirs:
            yield f"{name}: {_shown(ours)}, not {_shown(theirs)}"


def _shown(value: Any) -> str:
    return "none" if value is None or value in ([], {}) else str(value)


def _template_difference(ours: str, theirs: str) -> str:
    if ours == theirs:
        return ""
    if not ours or not theirs:
        return f"chat template: {'one' if ours else 'none'}, not {'one' if theirs else 'none'}"
    pairs = zip(ours, theirs, strict=False)
    n = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    parts = (repr(text[n : n + _SHOWN]) for text in (ours, theirs))
    return f"chat template, character {n}: " + ", not ".join(parts)


def _piece_difference(ours: ModelTokenizer, theirs: ModelTokenizer) -> str:
    """The first token that is another text; files leave unused ones out, or give them a name."""
    blank, n_ids = SPACE.encode(), max(ours.vocab_size, theirs.vocab_size)
    differ = []
    for id in range(n_ids):
        a, b = (side.token_bytes(id).replace(blank, b" ") for side in (ours, theirs))
        if a and b and a != b:
            differ.append((id, a, b))
    if not differ:
        return ""
    id, a, b = differ[0]
    more = f" and {len(differ) - 1:,} more" if len(differ) > 1 else ""
    return f"token {id}{more}: {a.decode('utf-8', 'replace')!r:.60}, not " + (
        f"{b.decode('utf-8', 'replace')!r:.60}"
    )


def _first_line(error: InputError) -> str:
    return error.message.splitlines()[0]
