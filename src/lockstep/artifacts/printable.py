"""Text from a file that others wrote, made fit for a terminal or a page."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with each sign that does not print (controls, bidirectional marks) as an escape."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else _escape(sign) for sign in text)


def _escape(sign: str) -> str:
    return sign.encode("unicode_escape", "surrogatepass").decode("ascii")
