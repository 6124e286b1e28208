"""Token ids to pieces of text that never end inside a character or a stop text."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Iterable, Iterator

from lockstep.tokenizers import ModelTokenizer


def stream_text(
    tokenizer: ModelTokenizer,
    ids: Iterable[int],
    *,
    stop_ids: Collection[int] = (),
    stop_texts: Collection[str] = (),
    show_control: bool = False,
) -> Iterator[str]:
    """Text as soon as it is certain; ends before the first stop text and at the first stop id.

    Control tokens are left out unless they are to be shown. Bytes that are not UTF-8 become U+FFFD.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    held = ""
    for id in ids:
        if id in stop_ids:
            break
        if tokenizer.is_control(id) and not show_control:
            continue
        held += decoder.decode(tokenizer.token_bytes(id))
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
