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
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    held = ""
    for id in ids:
        if id in stop_ids:
            break
        spelled = tokenizer.token_bytes(id)
        if tokenizer.is_control(id) and not show_control and spelled not in _THINK_BYTES:
            continue
        held += decoder.decode(spelled)
        if (end := _first_stop(held, stop_texts)) is not None:
            if end:
                yield held[:end]
            return
        certain = len(held) - _begun_stop(held, stop_texts)
        if certain:
            yield held[:certain]
            held = held[certain:]
    held += decoder.decode(b"", final=True)
    if held:
        yield held


def _first_stop(text: str, stops: Collection[str]) -> int | None:
    """Where the first stop text begins."""
    return min((at for s in stops if s and (at := text.find(s)) >= 0), default=None)


def _begun_stop(text: str, stops: Collection[str]) -> int:
    """How many characters at the end of the text may be the beginning of a stop text."""
    lengths = (n for s in stops for n in range(len(s) - 1, 0, -1) if text.endswith(s[:n]))
    return max(lengths, default=0)


def split_thinking(pieces: Iterable[str], *, begun: bool = False) -> Iterator[tuple[bool, str]]:
    """Pieces of an answer, each with whether it is thinking; the tags and the blanks around go.

    Thinking comes first, or not at all: a tag behind the beginning of an answer is text. `begun`
    says that the prompt has opened it.
    """
    state = _Thinking(begun)
    for piece in pieces:
        yield from state.take(piece)
    yield from state.take("", is_last=True)


class _Thinking:
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
            held_back = 0 if is_last else _begun_stop(self._held, (THINK_END,))
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
