"""`lockstep serve`: an OpenAI-compatible server around one model."""

from __future__ import annotations

from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import click

from lockstep.cli.model_options import (
    chosen_template,
    context_option,
    expect_context,
    kv_option,
    threads_option,
)
from lockstep.cli.options import Finite
from lockstep.cli.verb import Outcome, Verb
from lockstep.engine.model import Capacity, OpenModel, load
from lockstep.engine.source import Source, open_source
from lockstep.engine.text import open_templates, open_tokenizer
from lockstep.errors import UsageError
from lockstep.formats.locate.bounded import is_writable
from lockstep.server.listen import bind, serve
from lockstep.server.served import Served
from lockstep.server.service import Limits, Service
from lockstep.tokenizers import ChatRenderer, ChatTemplate, ModelTokenizer

OUTS = 64  # rows of logits in a pass, so that prompts are scored in large parts
SIGNALLED = 128  # plus the signal: how a shell names such an end


@click.command(cls=Verb)
@click.argument("model")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True,
              help="Port; 0 takes one that is free and says which.")  # fmt: skip
@click.option("--api-key", envvar="LOCKSTEP_API_KEY", show_envvar=True,
              help="Key that requests must bring; needed where other machines can reach the "
              "address.")  # fmt: skip
@click.option("--name", help="What requests call the model.  [default: its file, without ending]")
@click.option("--slots", type=click.IntRange(1, 256), default=4, show_default=True,
              help="Sequences that are generated at once.")  # fmt: skip
@context_option("Room for each prompt and its answer.")
@kv_option
@threads_option
@click.option("--chat-template", metavar="NAME|FILE",
              help="The template of chats.  [default: the model's own]")  # fmt: skip
@click.option("--max-queue", type=click.IntRange(1), default=256, show_default=True,
              help="Requests that wait for a slot; more are answered with 429.")  # fmt: skip
@click.option("--max-body", type=click.IntRange(1, 1024), default=8, show_default=True,
              help="Largest body of a request, in MiB.")  # fmt: skip
@click.option("--timeout", type=Finite(min=0, min_open=True), default=600.0, show_default=True,
              help="Seconds that an answer may take.")  # fmt: skip
@click.option("--drain", type=Finite(min=0), default=60.0, show_default=True,
              help="Seconds that answers have to end after SIGTERM or Ctrl-C.")  # fmt: skip
def command(
    model: str, host: str, port: int, api_key: str | None, name: str | None, slots: int,
    context: int | None, kv: Any, threads: int | None, chat_template: str | None, max_queue: int,
    max_body: int, timeout: float, drain: float,
) -> Outcome:  # fmt: skip
    """Serve a model: a GGUF file, a Hugging Face directory, hf://ORG/REPO/FILE or a run.

    Prints where it listens, then answers as OpenAI's API does until SIGTERM or Ctrl-C.
    """
    only_loopback = _check_reach(host, api_key)
    with ExitStack() as opening:
        # Before minutes go into a model that nobody could ask.
        bound = opening.enter_context(bind(host, port))
        source = open_source(model)
        expect_context(source, context)
        tokenizer = open_tokenizer(source)
        template = _template(source, tokenizer, chat_template, opening)
        capacity = Capacity(context=context, slots=slots, outs=OUTS, cache=kv)
        opened = load(source, capacity, threads=threads)
        served = Served(
            name=name or _name(source),
            session=opened.session,
            tokenizer=tokenizer,
            template=template,
        )
        stack = opening.pop_all()
    limits = Limits(max_queue=max_queue, max_body_bytes=max_body << 20, request_s=timeout)
    service = Service(served, limits, api_key=api_key)
    url = f"http://{f'[{host}]' if ':' in host else host}:{bound.getsockname()[1]}/v1"

    def answer() -> Outcome:
        with stack:
            cut_off = serve(service, bound, only_loopback=only_loopback, drain_s=drain)
        return Outcome({}, exit_code=SIGNALLED + cut_off if cut_off else 0)

    return Outcome(_document(served, opened, url), _text(served, opened, url), then=answer)


def _check_reach(host: str, api_key: str | None) -> bool:
    """Whether only this machine is to reach the server.

    Raises: UsageError if others could without a key.
    """
    if api_key == "":
        raise UsageError("--api-key: expected a key, got an empty one", hint="leave it out")
    if api_key is not None and not _fits_a_header(api_key):
        raise UsageError(
            "--api-key: expected a key that a header can carry, got one with blanks around it, "
            "control characters or bytes that are not UTF-8",
            hint="take printable characters; a line's end of a file is cut off by $(cat FILE)",
        )
    try:
        is_loopback = host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # a name, whose address is anybody's guess
        is_loopback = False
    if not is_loopback and api_key is None:
        raise UsageError(
            f"--host: expected 127.0.0.1 without a key, got {host}, which other machines can reach",
            hint="give --api-key, or leave --host out",
        )
    return is_loopback and api_key is None


def _fits_a_header(key: str) -> bool:
    """Whether a request can bring it: servers take blanks around a header's value away."""
    printable = all(ord(character) >= 32 and character != "\x7f" for character in key)
    return key == key.strip() and printable and is_writable(key)


def _name(source: Source) -> str:
    path = Path(source.path)
    return path.stem if path.is_file() else path.resolve().name


def _template(
    source: Source, tokenizer: ModelTokenizer, wanted: str | None, stack: ExitStack
) -> ChatTemplate | None:
    """The template of chats, whose process starts while the weights are loaded; None without."""
    templates = open_templates(source, tokenizer)
    chosen = chosen_template(templates, wanted, without="/v1/chat/completions is refused")
    if chosen is None:
        return None
    renderer = stack.enter_context(ChatRenderer())
    return ChatTemplate(chosen, templates, renderer)


def _document(served: Served, opened: OpenModel, url: str) -> dict[str, object]:
    shape = served.session.shape
    return {
        "url": url,
        "model": served.name,
        "path": str(opened.source.path),
        "slots": shape.slots,
        "context": shape.context,
        "kv": shape.cache,
        "chat": served.template is not None,
    }


def _text(served: Served, opened: OpenModel, url: str) -> str:
    shape = served.session.shape
    return (
        f"serving {served.name} at {url}\n"
        f"  {shape.slots} sequences of {shape.context} tokens at once, cache {shape.cache}\n"
        "  end with Ctrl-C: answers that run come to their end, a second one cuts them off"
    )
