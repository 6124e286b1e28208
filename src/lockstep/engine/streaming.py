"""Token ids to pieces of text that never end inside a character or a stop text."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Iterable, Iterator

from lockstep.tokenizers import ModelTokenizer

THINK_BEGIN, THINK_END = "<think>", "</think>"
_THINK_BYTES = (THINK_BEGIN.encode(), THINK_END.encode())


def stream_text(
    tokenizer: ModelTokenizer,
    ids: Iterable[int],
    *,
    stop_ids: Collection[int] = (),
    stop_texts: Collection[str] = (),
    show_control: bool = False,
) -> Iterator[str]:
    """Text as soon as it is certain; ends before the first stop text and at the first stop id.

    Control tokens are left out unless they are to be shown, but not the tags of thinking. Bytes
    that are not UTF-8 become U+FFFD.
    """
    text = CertainText(stop_texts)
    for id in ids:
        if id in stop_ids:
            break
        if piece := text.push(shown_bytes(tokenizer, id, show_control=show_control)):
            yield piece
        if text.stopped:
            return
    if piece := text.finish():
        yield piece


def shown_bytes(tokenizer: ModelTokenizer, id: int, *, show_control: bool = False) -> bytes:
    """What a reader is shown of a token: of control tokens nothing, but the tags of thinking."""
    spelled = tokenizer.token_bytes(id)
    is_hidden = tokenizer.is_control(id) and not show_control and spelled not in _THINK_BYTES
    return b"" if is_hidden else spelled


class CertainText:
    """Text that grows by bytes, given out as soon as it is certain, up to the first stop text."""

    def __init__(self, stop_texts: Collection[str] = ()) -> None:
        self._stops = tuple(stop for stop in stop_texts if stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stopped = False
        self.n_read = 0  # characters, those that are held back too

    def push(self, spelled: bytes) -> str:
        """The text that is certain with these bytes."""
        self._take(self._decoder.decode(spelled))
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._given(min(found))
        return self._given(len(self._held) - n_begun(self._held, self._stops))

    def finish(self) -> str:
        """What was held back, when nothing follows any more."""
        if self.stopped:
            return ""
        self._take(self._decoder.decode(b"", final=True))
        return self._given(len(self._held))

    def _take(self, text: str) -> None:
        self._held += text
        self.n_read += len(text)

    def _given(self, n_characters: int) -> str:
        text, self._held = self._held[:n_characters], self._held[n_characters:]
        return text


def n_begun(text: str, marks: Collection[str]) -> int:
    """How many characters at the end of the text may be the beginning of a mark."""
    return max((_n_begun(text, mark) for mark in marks), default=0)


def _n_begun(text: str, mark: str) -> int:
    # No further than the text goes: a mark may be as long as a request lets it be.
    lengths = range(min(len(mark) - 1, len(text)), 0, -1)
    return next((n for n in lengths if text.endswith(mark[:n])), 0)


def split_thinking(pieces: Iterable[str], *, begun: bool = False) -> Iterator[tuple[bool, str]]:
    """Pieces of an answer, each with whether it is thinking; the tags and the blanks around go.

    Thinking comes first, or not at all: a tag behind the beginning of an answer is text. `begun`
    says that the prompt has opened it.
    """
    state = Thinking(begun)
    for piece in pieces:
        yield from state.take(piece)
    yield from state.take("", is_last=True)


class Thinking:
    """What was read of an answer that may think first."""

    def __init__(self, begun: bool) -> None:
        self._phase = "thinking" if begun else "before"
        self._held = ""
        self._fresh = True  # nothing of this phase was given out, so that its first blanks go

    def take(self, piece: str, *, is_last: bool = False) -> Iterator[tuple[bool, str]]:
        """What is certain now."""
        self._held += piece
        if self._phase == "before" and not self._opens(is_last):
            return
        if self._phase == "thinking":
            end = self._held.find(THINK_END)
            held_back = 0 if is_last else n_begun(self._held, (THINK_END,))
            until = end if end >= 0 else len(self._held) - held_back
            yield from self._given(True, self._held[:until])
            self._held = self._held[until:]
            if end < 0:
                return
            self._held = self._held.removeprefix(THINK_END)
            self._phase, self._fresh = "after", True
        yield from self._given(False, self._held)
        self._held = ""

    def _opens(self, is_last: bool) -> bool:
        """Whether it is certain how the answer begins."""
        start = self._held.lstrip()
        if start.startswith(THINK_BEGIN):
            self._held, self._phase = start.removeprefix(THINK_BEGIN), "thinking"
        elif is_last or not THINK_BEGIN.startswith(start):
            self._phase, self._fresh = "answer", False
        else:
            return False
        return True

    def _given(self, thinks: bool, text: str) -> Iterator[tuple[bool, str]]:
        text = text.lstrip("\n") if self._fresh else text
        if text:
            self._fresh = False
            yield thinks, text
