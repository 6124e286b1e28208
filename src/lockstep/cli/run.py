"""`lockstep run`: text from a trained run, as it is generated."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import click

from lockstep.artifacts import RunDir
from lockstep.cli.verb import Outcome, Verb
from lockstep.data.grammar import CONTROL_TAGS, parse_prompt
from lockstep.engine.model import open_run_model
from lockstep.engine.sampling import Sampler, Sampling
from lockstep.engine.session import generate
from lockstep.engine.streaming import stream_text
from lockstep.errors import UsageError
from lockstep.tokenizers import Tokenizer


@click.command(cls=Verb)
@click.argument("model", metavar="RUN")
@click.option("-p", "--prompt", required=True, help="The text to go on from.")
@click.option("-n", "--max-tokens", type=click.IntRange(1), default=512, show_default=True,
              help="Most tokens to generate.")  # fmt: skip
@click.option("--temperature", type=float, default=0.0, show_default=True,
              help="0 takes the likeliest token.")  # fmt: skip
@click.option("--top-k", type=int, default=0, show_default=True,
              help="Keep the k likeliest tokens; 0 keeps all.")  # fmt: skip
@click.option("--top-p", type=float, default=1.0, show_default=True,
              help="Keep the likeliest tokens that reach this probability.")  # fmt: skip
@click.option("--min-p", type=float, default=0.0, show_default=True,
              help="Keep tokens with this share of the highest probability.")  # fmt: skip
@click.option("--repeat-penalty", type=float, default=1.0, show_default=True,
              help="Lower the score of tokens that occurred.")  # fmt: skip
@click.option("--repeat-last-n", "repeat_window", type=int, default=64, show_default=True,
              help="How far back the penalty looks; 0 is all the way.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the draws.")
@click.option("--stop", multiple=True, help="End before this text; may be repeated.")
@click.option("--ignore-eos", is_flag=True, help="Go on behind the end token.")
@click.option("--context-len", type=int, help="Room for prompt and text.  [default: the model's]")
@click.option("--threads", type=click.IntRange(1), help="Threads.  [default: all cores]")
def command(
    model: str, prompt: str, max_tokens: int, stop: tuple[str, ...], ignore_eos: bool,
    context_len: int | None, threads: int | None, **sampling: float,
) -> Outcome:  # fmt: skip
    """Generate text from the promoted weights of a run."""
    if "" in stop:
        raise UsageError("--stop: expected a text, got an empty one", hint="leave it out")
    sampler = Sampler(Sampling(**sampling))  # type: ignore[arg-type]  # click made them of the types
    opened = open_run_model(RunDir.resolve(model), context=context_len, threads=threads)
    tokenizer, session = opened.tokenizer, opened.session
    _note_what_is_left_open(prompt, tokenizer)
    ids = tokenizer.encode(prompt)
    room = min(max_tokens, session.context - len(ids))
    stop_ids = () if ignore_eos else (tokenizer.eos_id,)
    drawn: list[int] = []
    began = time.perf_counter()

    def tokens() -> Iterator[int]:
        for id in generate(session, ids, sampler, max_tokens=room, stop_ids=stop_ids):
            drawn.append(id)
            yield id

    pieces = []
    shown = stream_text(
        tokenizer, tokens(), stop_ids=stop_ids, stop_texts=stop, show_control=ignore_eos
    )
    for piece in shown:
        pieces.append(piece)
        sys.stdout.write(piece)
        sys.stdout.flush()
    seconds = time.perf_counter() - began
    sys.stdout.write("\n")
    document = {
        "run_dir": str(RunDir.resolve(model).path),
        "prompt": prompt,
        "prompt_tokens": len(ids),
        "text": "".join(pieces),
        "tokens": drawn,
        "stopped": bool(drawn) and drawn[-1] in stop_ids,
        "checkpoint_step": opened.manifest.step,
        "weights_sha256": opened.manifest.weights_sha256,
        "tok_s": len(drawn) / seconds,
    }
    return Outcome(document)


def _note_what_is_left_open(prompt: str, tokenizer: Tokenizer) -> None:
    """Says which complete prompt some tags may mean; a model has seen no others in training."""
    if not set(CONTROL_TAGS) <= set(tokenizer.tags):
        return
    try:
        complete = parse_prompt(prompt).text
    except UsageError:
        return
    if complete != prompt.removesuffix("<svg"):
        print(f"note: models are trained on complete prompts, such as {complete}", file=sys.stderr)
