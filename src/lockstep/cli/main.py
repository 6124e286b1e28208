"""The command `lockstep`: finds the verb, runs it, and turns every end into an exit code.

A verb is one file in this folder with a click command named `command` (`cls=Verb`, or `VerbGroup`)
whose callback returns an `Outcome`, and one line in `VERBS`. It is imported when it is called.
docs/contributing.md has the steps.
"""

from __future__ import annotations

import difflib
import io
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from importlib import import_module

import click

from lockstep import __version__
from lockstep.cli.termination import Terminated, raising_on_sigterm
from lockstep.cli.verb import Outcome
from lockstep.errors import EnvironmentLacks, LockstepError, UsageError

VERBS = {
    "demo": "Show the whole way, from generated data to drawn SVG, in about two minutes.",
    "data": "Build, take in, check and look at data sets.",
    "tokenizer": "Train a tokenizer, and try it on every row.",
    "init": "Make a run: its configuration and its initial weights.",
    "train": "Train a run, promote it, and judge what it draws.",
    "promote": "Make a checkpoint's weights those of the run.",
    "run": "Answer with a model or a run, or chat in the terminal.",
    "export": "Write a model for other programs, and prove that it is the model.",
    "inspect": "Say what a model holds, whether it runs here, and how fast it can be.",
    "serve": "Answer requests as OpenAI's API does.",
    "parity": "Compare trainings with PyTorch, and with themselves.",
    "compare": "Name the node at which a run's program, or a converted model, goes wrong.",
    "faults": "Plant faults into generated C, and see whether `compare` names them.",
    "go": "Say whether the runbook may proceed on a run, with the evidence.",
    "verify": "Prove that a checkpoint conversion is value-exact, in bounded memory.",
    "report": "Write the page that shows a run.",
    "doctor": "Say what works here, what does not, and the command that mends it.",
}

# Ends that are no verdict have the codes that a shell gives to them.
INTERRUPTED = 130
TERMINATED = 143
READER_GONE = 141


class _Verbs(click.Group):
    """The verbs of `VERBS`, imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs, in the order in which a newcomer meets them."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a verb, or None."""
        if cmd_name not in VERBS:
            return None
        command: click.Command = import_module(f"lockstep.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the verbs without importing them."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The verb that was asked for.

        Raises: UsageError that names the nearest verb.
        """
        if args[0].startswith("-") or args[0] in VERBS:
            return super().resolve_command(ctx, args)
        near = difflib.get_close_matches(args[0], VERBS, n=1, cutoff=0.5)
        hint = f"try `lockstep {near[0]}`" if near else "see `lockstep --help` for the verbs"
        raise UsageError(f"lockstep: expected a verb, got {args[0]!r}", hint=hint)


@click.group(cls=_Verbs, invoke_without_command=True, context_settings={"max_content_width": 100})
@click.version_option(__version__, prog_name="lockstep", message="%(prog)s %(version)s")
@click.pass_context
def lockstep(ctx: click.Context) -> None:
    """Train, compile and run small language models, and prove every hand-off on the way."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
        ctx.exit(0)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code; never raises what a user can cause."""
    _open_streams()
    args = list(sys.argv[1:] if argv is None else argv)
    with raising_on_sigterm():
        try:
            return _main(args)
        except Terminated:  # while the outcome was printed
            return TERMINATED


def _main(args: list[str]) -> int:
    as_json = _wants_json(args)
    try:
        with _stdout_for_the_document() if as_json else nullcontext():
            outcome = _guarded(lambda: _run(args))
        code = _print(outcome, as_json)
        return code if outcome.then is None else _guarded(outcome.then).exit_code
    except BrokenPipeError:
        _forget(1)
        return READER_GONE
    except OSError as error:
        _forget(1)
        message = f"standard output: {(error.strerror or str(error)).lower()}"
        hint = "send the output to a place that can be written"
        return _failure("EnvironmentLacks", message, hint, EnvironmentLacks.exit_code).exit_code


def _wants_json(args: Sequence[str]) -> bool:
    """Whether the answer is a document; a request for help is answered with text."""
    flags = args[: args.index("--")] if "--" in args else args
    return "--json" in flags and "--help" not in flags


def _run(args: list[str]) -> Outcome:
    """The outcome of a command line."""
    with lockstep.make_context("lockstep", args) as context:
        result = lockstep.invoke(context)
    assert isinstance(result, Outcome), f"a verb returned {type(result).__name__}, not an Outcome"
    return result


def _guarded(work: Callable[[], Outcome]) -> Outcome:
    """The outcome of some work, whatever happens."""
    try:
        return work()
    except click.exceptions.Exit as end:  # --help, --version
        return Outcome({}, exit_code=end.exit_code)
    except LockstepError as error:
        if error.exit_code == LockstepError.exit_code:
            return _our_bug(error)
        # By the name of the class that has the exit code: finer ones are for callers inside.
        kind = next(c for c in type(error).__mro__ if "exit_code" in vars(c))
        return _failure(kind.__name__, error.message, error.hint, error.exit_code)
    except click.ClickException as error:
        return _click_failure(error)
    except (click.Abort, KeyboardInterrupt, EOFError):
        return _failure("Interrupted", "interrupted", "", INTERRUPTED)
    except Terminated:
        return _failure("Terminated", "terminated", "", TERMINATED)
    except BrokenPipeError:
        raise
    except (OSError, MemoryError) as error:
        return _environment_failure(error) or _our_bug(error)
    except Exception as error:  # the last line of defence: its traceback is what we need to see
        return _our_bug(error)


def _click_failure(error: click.ClickException) -> Outcome:
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "lockstep"
    code = 4 if isinstance(error, click.FileError) else UsageError.exit_code
    message = error.format_message().rstrip(".")
    return _failure("UsageError", f"{path}: {message}", f"see `{path} --help`", code)


def _environment_failure(error: OSError | MemoryError) -> Outcome | None:
    """The outcome of what the machine refuses although the request made sense."""
    from lockstep.artifacts.files import HINTS  # not needed for --help, which is to be quick

    if isinstance(error, MemoryError):
        where, reason = "lockstep", "not enough memory"
        hint = "ask for less at once, or give the process more memory"
    elif error.errno in HINTS:
        where, reason = error.filename or "lockstep", (error.strerror or "").lower()
        hint = HINTS[error.errno]
    else:
        return None
    return _failure("EnvironmentLacks", f"{where}: {reason}", hint, EnvironmentLacks.exit_code)


def _our_bug(error: BaseException) -> Outcome:
    with _whatever_stderr_does():
        traceback.print_exception(error, file=sys.stderr)
    message = f"{type(error).__name__}: {error}"
    hint = "report this as a bug of lockstep, with the lines above"
    return _failure("Bug", message, hint, LockstepError.exit_code)


def _failure(kind: str, message: str, hint: str, exit_code: int) -> Outcome:
    """An outcome for an error; its text goes to stderr at once."""
    with _whatever_stderr_does():
        click.echo(click.style("error: ", fg="red", bold=True) + message, err=True)
        if hint:
            click.echo(click.style("  hint: ", bold=True) + hint, err=True)
    error = {"kind": kind, "message": message, "hint": hint or None}
    return Outcome({"error": error, "exit_code": exit_code}, exit_code=exit_code)


def _print(outcome: Outcome, as_json: bool) -> int:
    """Prints what belongs on stdout and returns the exit code."""
    text = outcome.text
    if as_json:
        try:
            text = json.dumps(outcome.document, indent=2, allow_nan=False)
        except (TypeError, ValueError) as error:
            outcome = _our_bug(error)
            text = json.dumps(outcome.document, indent=2)
    if text:
        click.echo(text)
    sys.stdout.flush()
    return outcome.exit_code


@contextmanager
def _stdout_for_the_document() -> Iterator[None]:
    """Sends whatever is printed meanwhile, also by child processes, to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _open_streams() -> None:
    """Gives a process that was started without stdout or stderr one that goes nowhere.

    What a terminal cannot spell is shown by its number, as stderr does it by itself.
    """
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
            setattr(sys, name, os.fdopen(descriptor, "w"))
    if isinstance(sys.stdout, io.TextIOWrapper):  # not where a test took its place
        sys.stdout.reconfigure(errors="backslashreplace")


@contextmanager
def _whatever_stderr_does() -> Iterator[None]:
    """A message that cannot be shown does not change the exit code."""
    try:
        yield
        sys.stderr.flush()
    except OSError:
        _forget(2)


def _forget(descriptor: int) -> None:
    """Keeps the interpreter from writing once more, in vain, when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


if __name__ == "__main__":
    sys.exit(main())
