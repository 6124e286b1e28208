"""`lockstep run`: one answer of a model as it is generated, or a chat in the terminal."""

from __future__ import annotations

import io
import sys
from contextlib import ExitStack
from typing import Any, get_args

import click

from lockstep.cli.model_options import (
    chosen_template,
    context_option,
    expect_context,
    kv_option,
    threads_option,
)
from lockstep.cli.options import options
from lockstep.cli.run_chat import Chat
from lockstep.cli.run_display import Display, Think
from lockstep.cli.run_request import (
    COMPLETION_TOKENS,
    Asked,
    conversation,
    limits_of,
    raw_prompt,
)
from lockstep.cli.verb import Outcome, Verb
from lockstep.data.grammar import CONTROL_TAGS, parse_prompt
from lockstep.engine.conversation import Answer, Speaker
from lockstep.engine.model import Capacity, OpenModel, load
from lockstep.engine.sampling import Sampler, Sampling
from lockstep.engine.source import Source, open_source
from lockstep.engine.text import open_templates, open_tokenizer
from lockstep.errors import UsageError
from lockstep.formats.locate.bounded import is_writable
from lockstep.tokenizers import (
    ChatRenderer,
    ChatTemplate,
    ModelTemplates,
    ModelTokenizer,
    TemplateSource,
)

SAMPLING = (
    ("--temperature", "temperature", "0 takes the likeliest token.",
     {"type": float, "default": 0.0, "show_default": True}),
    ("--top-k", "top_k", "Keep the k likeliest tokens; 0 keeps all.",
     {"type": int, "default": 0, "show_default": True}),
    ("--top-p", "top_p", "Keep the likeliest tokens that reach this probability.",
     {"type": float, "default": 1.0, "show_default": True}),
    ("--min-p", "min_p", "Keep tokens with this share of the highest probability.",
     {"type": float, "default": 0.0, "show_default": True}),
    ("--repeat-penalty", "repeat_penalty", "Lower the score of tokens that occurred.",
     {"type": float, "default": 1.0, "show_default": True}),
    ("--repeat-last-n", "repeat_window", "How far back the penalty looks; 0 is all the way.",
     {"type": int, "default": 64, "show_default": True}),
    ("--seed", "seed", "Seed of the draws.",
     {"type": int, "default": 0, "show_default": True}),
)  # fmt: skip


@click.command(cls=Verb)
@click.argument("model")
@click.option("-p", "--prompt", help="Answer this and end.  [default: standard input, or a chat]")
@click.option("-n", "--max-tokens", type=click.IntRange(1),
              help=f"Most tokens to generate.  [default: {COMPLETION_TOKENS}; "
              "in a chat, what the context holds]")  # fmt: skip
@options(*SAMPLING)
@click.option("--stop", multiple=True, help="End before this text; may be repeated.")
@click.option("--ignore-eos", is_flag=True, help="Go on behind the end token.")
@click.option("--raw", is_flag=True,
              help="Go on from the prompt as it is, control tokens included.")  # fmt: skip
@click.option("--system", help="The system message.")
@click.option("--chat-template", metavar="NAME|FILE",
              help="The template of a chat: chatml, gemma, llama3, plain, one that the model "
              "names, or a file.  [default: the model's own]")  # fmt: skip
@click.option("--think", type=click.Choice(get_args(Think)),
              help="Show thinking, hide it, or ask for none.  [default: show]")  # fmt: skip
@context_option("Room for prompt and answer.", "--context-len")
@kv_option
@threads_option
def command(
    model: str, prompt: str | None, max_tokens: int | None, stop: tuple[str, ...],
    ignore_eos: bool, raw: bool, system: str | None, chat_template: str | None, think: Any,
    context: int | None, kv: Any, threads: int | None, **sampling: float,
) -> Outcome:  # fmt: skip
    """Answer with a model: a GGUF file, a Hugging Face directory, hf://ORG/REPO/FILE or a run.

    Without a prompt it reads one from standard input, or opens a chat at a terminal.
    """
    asked = Asked(
        prompt=prompt, system=system, chat_template=chat_template, think=think, raw=raw,
        max_tokens=max_tokens, stop=stop, ignore_eos=ignore_eos,
    )  # fmt: skip
    _check(asked)
    sampler = Sampler(Sampling(**sampling))  # type: ignore[arg-type]  # click made them of the types
    chats = prompt is None and sys.stdin.isatty()
    if prompt is None and not chats:
        prompt = _read_stdin()
    source = open_source(model)
    expect_context(source, context)
    tokenizer = open_tokenizer(source)
    templates = open_templates(source, tokenizer)
    chosen = _chosen(asked, source, templates)  # before the weights, which take a while
    with ExitStack() as stack:
        # It starts while the weights are loaded.
        renderer = None if chosen is None else stack.enter_context(ChatRenderer())
        opened = load(source, Capacity(context=context, cache=kv), threads=threads)
        template = None
        if chosen is not None and renderer is not None:
            template = ChatTemplate(chosen, templates, renderer)
        if chats:
            return Chat(opened, tokenizer, template, sampler, asked).run()
        assert prompt is not None
        return _answer_once(opened, tokenizer, template, sampler, asked, prompt)


def _check(asked: Asked) -> None:
    """Texts that are none, and flags that say nothing beside each other, are refused."""
    for name, text in (
        ("--prompt", asked.prompt),
        ("--system", asked.system),
        *(("--stop", stop) for stop in asked.stop),
    ):
        if text is not None and not is_writable(text):
            raise UsageError(
                f"{name}: expected UTF-8, got other bytes",
                hint="convert it first, for example with iconv",
            )
    if "" in asked.stop:
        raise UsageError("--stop: expected a text, got an empty one", hint="leave it out")
    for name, value in (
        ("--system", asked.system),
        ("--chat-template", asked.chat_template),
        ("--think", asked.think),
    ):
        if asked.raw and value is not None:
            raise UsageError(
                f"{name}: expected a chat, got --raw, which has no template",
                hint="leave one of the two out",
            )


def _read_stdin() -> str:
    """The prompt on standard input, without the end of its last line."""
    if isinstance(sys.stdin, io.TextIOWrapper):  # some locales let bytes that are no text pass
        sys.stdin.reconfigure(encoding="utf-8", errors="strict")
    try:
        text = sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"standard input: expected UTF-8, got byte 0x{error.object[error.start]:02X} "
            f"at {error.start}",
            hint="convert it first, for example with iconv",
        ) from error
    if not text:
        raise UsageError(
            "standard input: expected a prompt, got none",
            hint="give one with -p, or start at a terminal for a chat",
        )
    return text


def _chosen(asked: Asked, source: Source, templates: ModelTemplates) -> TemplateSource | None:
    """The template to talk through; None where prompts are gone on from as they are.

    Raises: UsageError if it is not there, or flags need one.
    """
    if asked.raw:
        return None
    has_one = asked.chat_template is not None or bool(templates.named)
    for name, value in (("--system", asked.system), ("--think", asked.think)):
        if value is not None and not has_one:
            raise UsageError(
                f"{name}: expected a chat template, which {source.where} has not",
                hint="choose one with --chat-template, or leave this out",
            )
    without = "" if source.kind == "run" else "it goes on from the prompt as it is"
    return chosen_template(templates, asked.chat_template, without=without)


def _answer_once(
    opened: OpenModel, tokenizer: ModelTokenizer, template: ChatTemplate | None, sampler: Sampler,
    asked: Asked, prompt: str,
) -> Outcome:  # fmt: skip
    """Streams one answer to stdout."""
    speaker = Speaker(opened.session, tokenizer)
    if template is None:
        _note_what_is_left_open(prompt, tokenizer)
        ids, begun = raw_prompt(tokenizer, prompt, markup=asked.raw), None
    else:
        chat = conversation(template, tokenizer, asked)
        chat.say(prompt)
        ids, begun = chat.prompt()
    display = Display(sys.stdout, shows_thinking=asked.think in (None, "show"))
    limits = limits_of(asked, template)
    answer, pieces = speaker.answer(ids, sampler, limits, begun=begun)
    for thinks, text in pieces:
        display.show(thinks, text)
    display.end()
    return Outcome(_document(opened, prompt, answer))


def _document(opened: OpenModel, prompt: str, answer: Answer) -> dict[str, object]:
    source = opened.source
    document: dict[str, object] = {
        "model": str(source.path),
        "prompt": prompt,
        "prompt_tokens": len(answer.prompt_ids),
        "text": answer.text,
        "thinking": answer.thinking,
        "tokens": answer.ids,
        "finish_reason": answer.finish,
        "prompt_tok_s": answer.read_tok_s,
        "tok_s": answer.write_tok_s,
    }
    if source.weights is not None:
        document |= {
            "run_dir": str(source.path),
            "checkpoint_step": source.weights.step,
            "weights_sha256": source.weights.weights_sha256,
        }
    return document


def _note_what_is_left_open(prompt: str, tokenizer: ModelTokenizer) -> None:
    """Says which complete prompt some tags may mean; a model has seen no others in training."""
    if not set(CONTROL_TAGS) <= set(getattr(tokenizer, "tags", ())):
        return
    try:
        complete = parse_prompt(prompt).text
    except UsageError:
        return
    if complete != prompt.removesuffix("<svg"):
        print(f"note: models are trained on complete prompts, such as {complete}", file=sys.stderr)
