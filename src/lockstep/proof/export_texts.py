"""Texts on which tokenizers are compared: scripts, blanks, marks, and the model's own tokens."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from lockstep.errors import InputError

_TEXTS = (
    *(" ", "   a", "a   ", "\t\tx\t", "\n", "\n\n\n", "\r\n\r\n", " \n \n\t\n ", "\n a"),
    *("hello world", "Hello, WORLD!!", "it's we'll I'M they'RE don't 'tis '' ' s", "x'ſ 'S"),
    *("0", "12345678901234", "1,234.50 3½ Ⅷ ٣٤٥ १२३ ²³", "v1.2.3-rc4 0x0A <0xFF>"),
    *("١٢٣٤٥٦٧٨ १२३४५६७ ๑๒๓๔๕ 1٢3४5", "٠١٢٣٤ ৪৫৬৭৮৯"),
    *(
        "😀👍🏽👩\u200d👩\u200d👧🏳️",
        "日本語のテキスト、中文。한국어",
        "ภาษาไทย",
        "مرحبا ١٢٣ שלום नमस्ते",
    ),
    *("é e\u0301 ñ", "ﬁ Å Ω K", "\u00a0\u2003\u3000x\u2028y\x85", "\ufeffbom \ufffd", "\x7f\x01"),
    *("▁▁ a▁b", "Ġ Ċ", "\U0010ffff 𝔘𠜎", "a" * 200, " " * 65, "1" * 50, "=" * 90),
    *("def f(x):\n    return x**2  # ok\n", '{"a": [1, 2, {"b": null}]}', "http://x.y/?q=1#f"),
    *('<svg width="100" height="100"><circle cx="50" cy="50" r="4.5" fill="#ff0000"/></svg>',),
    *("(a)[b]{c} $5 €6 ^~`|+<=>", "—–- “q” «s»", "_a__b___ C++ .NET", "<s></s><unk>"),
)
_MIXED = 60


def texts_for(
    encode: Callable[[str], Sequence[int]], names: Sequence[str], rows: Sequence[str] = ()
) -> list[str]:
    """The texts that a tokenizer can encode, with the names of its tokens and rows of its data."""
    draw = random.Random(11)
    named = [*names[:24], *(f"a{name}b {name}" for name in names[:24])]
    parts = [*_TEXTS, *names[:24]]
    mixed = ["".join(draw.choices(parts, k=draw.randint(2, 5))) for _ in range(_MIXED)]
    found = []
    for text in (*_TEXTS, *named, *mixed, *rows):
        try:
            encode(text)
        except InputError:  # outside of its alphabet
            continue
        found.append(text)
    return list(dict.fromkeys(found))
