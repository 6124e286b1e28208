"""Text to ASCII: common symbols to what a keyboard has, the rest to numeric references."""

from __future__ import annotations

from collections.abc import Iterator

_SYMBOLS = """
→ -> ← <- ↔ <-> ⇒ => ⇐ <= ⇔ <=> ⇄ <-> ↑ ^ ↓ v ▲ ^ ▼ v ▶ > ▸ > ◀ <
± +/- × x ÷ / · * • * ∙ * ⋅ * − - ≤ <= ≥ >= ≠ != ≈ ~= ≡ == ∞ inf √ sqrt ∂ d ∑ sum ∏ prod ° deg
– - — -- ― -- … ... ‘ ' ’ ' ‚ , “ " ” " „ " « << » >> ′ ' ″ "
═ = ║ | ─ - │ | ━ - ┃ | ┌ + ┐ + └ + ┘ + ├ + ┤ + ┬ + ┴ + ┼ + ▁ _
✓ [ok] ✔ [ok] ✗ [x] ✘ [x] ★ * ☆ * ⚠ [!] © (c) ® (r) ™ (tm) € EUR £ GBP
α alpha β beta γ gamma δ delta ε epsilon η eta θ theta λ lambda μ mu µ u π pi ρ rho σ sigma τ tau
φ phi ω omega Δ Delta Σ Sum Φ Phi Ω Omega
⁰ ^0 ¹ ^1 ² ^2 ³ ^3 ⁴ ^4 ⁵ ^5 ⁶ ^6 ⁷ ^7 ⁸ ^8 ⁹ ^9 ⁻ ^-
₀ _0 ₁ _1 ₂ _2 ₃ _3 ₄ _4 ₅ _5 ₆ _6 ₇ _7 ₈ _8 ₉ _9
½ 1/2 ¼ 1/4 ¾ 3/4
"""
_words = _SYMBOLS.split()
COMMON: dict[str, str] = dict(zip(_words[0::2], _words[1::2], strict=True))
# What is seen as a blank, and what is not seen at all.
COMMON |= dict.fromkeys("\u00a0\u2002\u2003\u2009\u202f", " ")
COMMON |= dict.fromkeys("\u200b\u200c\u200d\ufeff\ufe0e\ufe0f", "")

_MARKUP = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"}


def _mapped(text: str, common: bool) -> Iterator[str]:
    for character in text:
        plain = COMMON.get(character, character) if common else character
        for letter in plain:
            if letter in _MARKUP:
                yield _MARKUP[letter]
            elif letter.isascii():
                yield letter
            else:
                yield f"&#x{ord(letter):X};"


def ascii_markup(text: str, *, common: bool = True) -> str:
    """Character data as ASCII markup: `é` becomes `&#xE9;`, and with `common`, `→` an arrow `->`.

    Source: https://www.w3.org/TR/xml/#sec-references
    """
    return "".join(_mapped(text, common))
