"""A chat in the terminal: lines, commands, answers that Ctrl-C stops."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import click

from lockstep.cli.run_commands import COMMANDS, Commands
from lockstep.cli.run_display import Display
from lockstep.cli.run_request import Asked, conversation, limits_of, raw_prompt
from lockstep.cli.verb import Outcome
from lockstep.engine.conversation import Speaker
from lockstep.engine.model import OpenModel
from lockstep.engine.sampling import Sampler
from lockstep.errors import LockstepError, UsageError, nearest
from lockstep.tokenizers import ChatTemplate, ModelTokenizer

_PROMPT, _MORE = "> ", ". "


class Chat:
    """Asks for a line, answers it, and so on until the end of the input."""

    def __init__(
        self, opened: OpenModel, tokenizer: ModelTokenizer, template: ChatTemplate | None,
        sampler: Sampler, asked: Asked,
    ) -> None:  # fmt: skip
        self._tokenizer, self._opened = tokenizer, opened
        self._stopped = False
        self._raw = asked.raw
        self._last_line = ""
        self._state = Commands(
            speaker=Speaker(opened.session, tokenizer, interrupted=lambda: self._stopped),
            chat=conversation(template, tokenizer, asked) if template else None,
            sampler=sampler, limits=limits_of(asked, template), think=asked.think,
        )  # fmt: skip

    def run(self) -> Outcome:
        """The whole chat."""
        with suppress(ImportError):
            import readline  # noqa: F401  # input() then edits lines and remembers them
        if isinstance(sys.stdin, io.TextIOWrapper):  # some locales let bytes that are no text pass
            sys.stdin.reconfigure(errors="strict")
        name = self._opened.source.path.name
        print(
            f"{name}, {self._opened.session.context} tokens of context. /help lists the commands."
        )
        while (line := self._line()) is not None:
            try:
                if not self._obeyed(line):
                    self._answer(line)
            except (LockstepError, OSError) as error:
                _say_error(error)
            if self._state.leaves:
                break
        chat = self._state.chat
        return Outcome({"model": str(self._opened.source.path),
                        "messages": chat.messages if chat else []})  # fmt: skip

    def _line(self) -> str | None:
        """The next line that is not empty, with those that a backslash joins to it."""
        lines: list[str] = []
        while True:
            try:
                line = input(_MORE if lines else _PROMPT)
            except EOFError:
                print()
                return None
            except KeyboardInterrupt:
                print("\n(Ctrl-D or /exit leaves)")
                lines = []
                continue
            except UnicodeDecodeError:
                _say_error(UsageError("line: expected UTF-8, got other bytes", hint="type it anew"))
                lines = []
                continue
            lines.append(line.removesuffix("\\"))
            if not line.endswith("\\") and (text := "\n".join(lines)).strip():
                return text
            if not line.endswith("\\"):
                lines = []

    def _obeyed(self, line: str) -> bool:
        """Whether a line was a command."""
        if not line.startswith("/") or line.startswith("//"):
            return False
        name, _, rest = line[1:].partition(" ")
        if name not in COMMANDS:
            raise UsageError(
                f"/{name:.40}: expected a command, got none of that name",
                hint=f"{nearest(name, COMMANDS)}/help lists them; write // for a text that begins "
                "with one",
            )
        said = self._state.obey(name, rest.strip())
        if said:
            print(said)
        if self._state.asks_again:
            self._state.asks_again = False
            self._answer(None)
        return True

    def _answer(self, line: str | None) -> None:
        """Answers a line, or the last one anew."""
        state = self._state
        if state.chat is not None:
            turns = list(state.chat.messages)
            if line is not None:
                state.chat.say(line.removeprefix("/") if line.startswith("//") else line)
            try:
                ids, begun = state.chat.prompt()
                self._stream(ids, begun)
            except BaseException:
                state.chat.messages[:] = turns  # as if it had not been said
                raise
            assert state.answer is not None
            state.chat.hear(state.answer)
        else:
            self._last_line = self._last_line if line is None else line
            self._stream(raw_prompt(self._tokenizer, self._last_line, markup=self._raw), None)

    def _stream(self, ids: list[int], begun: bool | None) -> None:
        state = self._state
        display = Display(sys.stdout, shows_thinking=state.think in (None, "show"))
        with self._stoppable():
            answer, pieces = state.speaker.answer(ids, state.sampler, state.limits, begun=begun)
            try:
                for thinks, text in pieces:
                    display.show(thinks, text)
            finally:
                display.end()
        state.answer = answer
        ends = {"interrupted": "stopped", "length": "cut at the most tokens, see /set max-tokens",
                "context": "cut: the context is full, see /clear and --ctx"}  # fmt: skip
        if answer.finish in ends:
            print(f"({ends[answer.finish]})")

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """While this lasts, Ctrl-C asks the answer to end between two tokens."""
        self._stopped = False

        def stop(number: int, frame: FrameType | None) -> None:
            if self._stopped:
                raise KeyboardInterrupt
            self._stopped = True

        before = signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def _say_error(error: LockstepError | OSError) -> None:
    message = error.message if isinstance(error, LockstepError) else error.strerror or str(error)
    click.echo(click.style("error: ", fg="red", bold=True) + message, err=True)
    if isinstance(error, LockstepError) and error.hint:
        click.echo(click.style("  hint: ", bold=True) + error.hint, err=True)
