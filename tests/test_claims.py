"""Claim files: what they may say, what they resolve to, and how they may not add up."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.errors import InputError, UsageError
from lockstep.formats.leaf import ELEMENT_TYPES, ElementType, Held, Key, Leaf, LeafPath, Name, Store
from lockstep.verify.claim import Claim, Equality, Plan
from lockstep.verify.claim_file import (
    ClaimFile,
    ClaimRule,
    ExcuseRule,
    Fact,
    From,
    LikeRule,
    TieRule,
    load_claims,
    parse_claims,
)
from lockstep.verify.expressions import evaluate, holds, parse_call, parse_expression
from lockstep.verify.facts import agree, lookup
from lockstep.verify.resolve import resolve
from lockstep.verify.templates import NameIndex, patterns

Spec = tuple[tuple[int, ...], str]
HEAD = 'schema = "lockstep.claims/1"\n'


def store(leaves: Mapping[str, Spec], facts: Mapping[str, object] | None = None) -> Store:
    """A listed checkpoint with leaves of these shapes and types; an empty type is a value."""
    found = {}
    for name, (shape, kind) in leaves.items():
        if kind in ELEMENT_TYPES or kind == "Q8_0":
            element = ELEMENT_TYPES.get(kind) or ElementType("Q8_0", 34, 32)
            found[name] = Leaf((Name(name),), shape, element, Held(b""))
        else:
            found[name] = Leaf((Name(name),), (), ElementType(kind, 0), Held(b""), value=(7,))
    return Store("here", "test", found, (), facts or {})


def claims(text: str) -> ClaimFile:
    return parse_claims(tomllib.loads(HEAD + text), "c.toml")


def plan(text: str, source: Mapping[str, Spec], target: Mapping[str, Spec], **facts: Any) -> Plan:
    return resolve(
        claims(text),
        store(source, facts.get("source_facts")),
        store(target, facts.get("target_facts")),
    )


def messages(found: Plan) -> list[str]:
    return [f"{problem.kind}: {problem.message}" for problem in found.problems]


def claim(found: Plan, target: str) -> Claim:
    (one,) = [c for c in found.claims if c.target == target]
    return one


MATRIX: Spec = ((4, 6), "F32")


# --- expressions


def test_expressions_are_those_of_python_for_numbers_lists_and_conditions() -> None:
    names = {"a": 7, "b": [1, 2], "w": "half"}
    for text, value in {
        "a // 2 * 3 - 1": 8, "-a % 4": 1, "(a + 1) * 2": 16, "b + [a]": [1, 2, 7],
        "range(0, a, 3)": [0, 3, 6], "a": 7, "w": "half", "'x'": "x", "0.5 * 4": 2.0,
        "a > 6 and not a == 8": 1, "1 < a <= 6": 0, "a in b or a in [7]": 1, "w == 'half'": 1,
        "a not in b": 1,
    }.items():  # fmt: skip
        tree = parse_expression(text, "x").tree
        assert evaluate(tree, names, "x") == value, text
    assert holds(parse_expression("a % 2 == 1", "x"), names, "x")
    assert parse_expression("range(n) + [m]", "x").names == {"n", "m"}


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')", "a.b", "a[0]", "lambda: 1", "[x for x in a]", "a ** 9", "a / 2", "f(a)",
        "a if a else 1", "{1}", "None", "True", "1 +", "a := 1", "f'{a}'", "b'x'", "1j", "~a",
        "range(n=3)", "a << 9", "(" * 300 + "1" + ")" * 300, "1" * 5000, "\x00",
    ],
)  # fmt: skip
def test_expressions_take_nothing_else_from_python(text: str) -> None:
    with pytest.raises(UsageError, match="x: expected"):
        parse_expression(text, "x")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a // 0", "got an error"),
        ("nobody + 1", "expected a name of a fact or a capture, got 'nobody'"),
        ("range(1 << 2)", "expected"),
        ("range(99999999)", "a list of more than"),
        ("'a' * 3", "a is no number"),
        ("a in 3", "expected a list after 'in'"),
        ("[1] < 2", "got an error"),
        ("9" * 60 + " * " + "9" * 60, "more than 256 bits"),
        ("range(0.5)", "is no integer"),
        ("range()", "one to three"),
        ("odd", "a number, a word or a list was expected"),
    ],
)
def test_values_that_do_not_fit_are_named(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        evaluate(parse_expression(text, "x").tree, {"a": 1, "odd": {}}, "x")
    assert words in caught.value.message


def test_a_step_is_one_call() -> None:
    call = parse_call(" cast(BF16, rounding=RTZ) ", "x")
    assert (call.name, len(call.args), [name for name, _ in call.options]) == (
        ("cast", 1, ["rounding"])
    )
    for text in ("cast", "a.b()", "cast(**x)", "f(g(1))", "f(*a)", "a() + b()", "f(lambda: 1)"):
        with pytest.raises(UsageError, match="x: expected"):
            parse_call(text, "x")


# --- patterns


def test_captures_are_typed_and_numbers_are_in_their_order() -> None:
    (pattern,) = patterns(["h.{layer:int}.mlp/{kind:str}"], {}, "x")
    assert pattern.match("h.10.mlp/up") == {"layer": 10, "kind": "up"}
    for name in (
        "h.07.mlp/up",
        "h.-1.mlp/up",
        "h.1.mlp/a.b",
        "h.1.mlp/a/b",
        "h.1xmlp/up",
        "h.1.mlp/",
    ):
        assert pattern.match(name) is None, name
    names = NameIndex([f"h.{i}.mlp/up" for i in (10, 2, 1, 0, 11)])
    found = names.matches(pattern)
    assert [captures["layer"] for _, captures in found] == [10, 2, 1, 0, 11]  # as in the file
    found.sort(key=lambda match: pattern.order(match[1]))
    assert [captures["layer"] for _, captures in found] == [0, 1, 2, 10, 11]


def test_names_with_dots_slashes_brackets_and_braces_are_matched_whole() -> None:
    tree: LeafPath = (Key("opt_state"), Key("h.18.mlp"), Key("a/b"))
    leaf = Leaf(tree, (1,), ELEMENT_TYPES["F32"], Held(b""))
    assert leaf.name == "opt_state/h.18.mlp/a~1b"
    (pattern,) = patterns(["opt_state/h.{i:int}.mlp/{last:str}"], {}, "x")
    assert pattern.match(leaf.name) == {"i": 18, "last": "a~1b"}
    (pattern,) = patterns(["a[0]+(x)*.{{{n:any}}}"], {}, "x")
    assert pattern.match("a[0]+(x)*.{p/q\n.r}") == {"n": "p/q\n.r"}
    assert pattern.name_of({"n": "z"}, "x") == "a[0]+(x)*.{z}"
    (plain,) = patterns(["{{}}"], {}, "x")
    assert NameIndex(["{}", "x"]).matches(plain) == [("{}", {})]


def test_a_capture_that_stands_twice_has_one_value() -> None:
    target, source = patterns(["{a:int}.{b:enum}", "{a}/{b}/{a}"], {"b": ("up", "down")}, "x")
    assert target.match("3.down") == {"a": 3, "b": "down"}
    assert target.match("3.sideways") is None
    assert source.name_of({"a": 3, "b": "up"}, "x") == "3/up/3"
    assert source.match("3/up/4") is None
    assert [target.order({"a": 0, "b": b})[1][1] for b in ("up", "down")] == [0, 1]


@pytest.mark.parametrize(
    ("texts", "words", "expected"),
    [
        (["a.{x"], {}, "expected braces that close"),
        (["a.}"], {}, "expected braces that close"),
        (["a.{x}"], {}, "expected a kind for the capture {x}"),
        (["{x:int}", "{x:str}"], {}, "expected one kind of {x}, got int and str"),
        (["{x:float}"], {}, "expected a capture such as {layer:int}, got {x:float}"),
        (["{:int}"], {}, "expected a capture such as"),
        (["{}"], {}, "expected an expression"),
        (["{x:enum}"], {}, "expected the words of {x:enum}"),
        (["{x:int}"], {"x": ("a",)}, "expected a capture {x:enum} in a pattern"),
        (["a"], {"y": ("a",)}, "expected a capture {y:enum} in a pattern"),
    ],
)
def test_a_pattern_that_is_none_says_so(
    texts: list[str], words: dict[str, tuple[str, ...]], expected: str
) -> None:
    with pytest.raises(UsageError) as caught:
        patterns(texts, words, "x")
    assert expected in caught.value.message
    assert caught.value.hint


# --- the file

FULL = """
title = "everything"
mapping = "shared with the converter"
[facts]
n = 2
word = "neox"
order = [1, 0]
heads = { source = "h", target = "x.h", value = "n * 2", count = "{layer:int}.q", default = "4" }
kind = { target_type = "head", source_type = "tok" }
[[claim]]
group = "g"
target = "{layer:int}.{which:enum}"
sources = ["s.{layer}.{which}", { name = "t.{layer}.{p:int}", transform = ["stack(0)"] }]
transform = ["concat(0)", "cast(BF16, rounding=RTZ)"]
where = "layer % n == 0"
captures = { which = ["gate", "up"] }
equality = { ulp = 1, why = "summed in another order" }
optional = true
reason = "only some have it"
[[claim]]
target = "a"
source = "b"
equality = "values"
[[claim]]
target = "c"
source = "d"
equality = { atol = 1e-5, rtol = 0, why = "merged" }
[[drop]]
source = "{x:any}.inv_freq"
reason = "made anew"
where = "n == 2"
[[new]]
target = "zero"
reason = "padding"
value = 0.0
group = "pads"
[[duplicate]]
source = "tok"
reason = "untied"
optional = true
[[derived]]
target = "mask"
reason = "follows from the shape"
[[tie]]
side = "target"
leaves = ["head", "tok"]
[[like]]
group = "mu"
of = "g"
source = ["params/", "mu/"]
target = ["", "opt.", ".exp_avg"]
cast = "cast(F32)"
optional = true
reason = "stateless"
"""


def test_a_file_says_what_the_dataclasses_say() -> None:
    found = claims(FULL)
    assert found.claims[0] == ClaimRule(
        group="g",
        target="{layer:int}.{which:enum}",
        sources=(
            From(name="s.{layer}.{which}"),
            From(name="t.{layer}.{p:int}", transform=("stack(0)",)),
        ),
        transform=("concat(0)", "cast(BF16, rounding=RTZ)"),
        where="layer % n == 0",
        captures={"which": ("gate", "up")},
        equality=Equality("within", ulp=1, why="summed in another order"),
        optional=True,
        reason="only some have it",
    )
    assert found.claims[1].equality == Equality("values")
    assert found.claims[2].equality == Equality("within", atol=1e-5, rtol=0.0, why="merged")
    assert found.facts["heads"] == Fact(
        expression="n * 2", source="h", target="x.h", count="{layer:int}.q", default="4"
    )
    assert found.facts["order"] == Fact(value=(1, 0))
    assert found.excuses[1] == ExcuseRule(
        kind="new", side="target", leaf="zero", reason="padding", value=0.0, group="pads"
    )
    assert found.ties == (TieRule(side="target", leaves=("head", "tok")),)
    assert found.likes[0].target == ("", "opt.", ".exp_avg")
    assert found.mapping == "shared with the converter"


def test_a_file_that_is_written_back_is_the_same(tmp_path: Path) -> None:
    found = claims(FULL)
    path = tmp_path / "again.toml"
    path.write_text(found.to_toml(), encoding="utf-8")
    again = load_claims(path)
    assert again == found
    assert again.digest == found.digest == claims(FULL + "\n# a comment\n").digest
    assert len(found.digest) == 64
    assert found.digest != claims(FULL.replace("0.0", "1.0")).digest
    assert claims('[[drop]]\nsource = "x"\nreason = "r"').digest != claims("").digest


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
plain = words.map(lambda text: text.replace("{", "{{").replace("}", "}}"))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_whatever_words_it_holds_a_file_can_be_written_back(data: st.DataObject) -> None:
    made = ClaimFile(
        title=data.draw(words),
        facts={"f": Fact(value=data.draw(st.integers() | st.floats(allow_nan=False) | words))},
        claims=tuple(
            ClaimRule(target=data.draw(plain), sources=(From(name=data.draw(plain)),), group="g")
            for _ in range(data.draw(st.integers(0, 2)))
        ),
        excuses=(
            ExcuseRule(
                kind="derived", side="source", leaf=data.draw(plain), reason=data.draw(words)
            ),
        ),
        likes=(),
        ties=(TieRule(side="source", leaves=("a", "b" + data.draw(words))),),
    )
    assert parse_claims(tomllib.loads(made.to_toml()), "x") == made


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[[claim]]\ntarget = 'a'", "[[claim]] 1: expected either 'source' or 'sources', got none"),
        ("[[claim]]\ntarget = 'a'\nsource = 'b'\nsources = ['c']", "'sources', got both"),
        ("[[claim]]\nsource = 'b'", "[[claim]] 1: expected the key 'target', got none"),
        ("[[claim]]\ntarget = 3\nsource = 'b'", "target: expected a word, got 3"),
        ("[[claim]]\ntarget = 'a'\nsource = ''", "source: expected a word, got ''"),
        ("[[claim]]\ntarget = 'a'\nsources = []", "sources: expected a list of sources, got []"),
        ("[[claim]]\ntarget = 'a'\nsources = [3]", "sources: expected words, or tables"),
        (
            "[[claim]]\ntarget = 'a'\nsources = [{ nam = 'b' }]",
            "sources 1: expected the key 'name'",
        ),
        (
            "[[claim]]\ntarget = 'a'\nsources = [{ name = 'b', x = 1 }]",
            "[[claim]] 1: sources 1: expected known keys, got 'x'",
        ),
        (
            "[[claim]]\ntarget='a'\nsource='b'\ntransform='x()'",
            "transform: expected a list of words",
        ),
        (
            "[[claim]]\ntarget='a'\nsource='b'\ntrans = []",
            "[[claim]] 1: expected known keys, got 'trans'",
        ),
        ("[[claim]]\ntarget='a'\nsource='b'\noptional = 1", "optional: expected true or false"),
        ("[[claim]]\ntarget='a'\nsource='b'\noptional = true", "expected a reason why the rule is"),
        (
            "[[claim]]\ntarget='a'\nsource='b'\nequality = 'close'",
            "equality: expected 'bits', 'values'",
        ),
        (
            "[[claim]]\ntarget='a'\nsource='b'\nequality = { ulp = 1 }",
            "equality: expected the key 'why'",
        ),
        (
            "[[claim]]\ntarget='a'\nsource='b'\nequality = { why = 'x' }",
            "expected either 'ulp', or",
        ),
        (
            "[[claim]]\ntarget='a'\nsource='b'\nequality = { why = 'x', ulp = 1, atol = 1 }",
            "'atol' and 'rtol', got both",
        ),
        (
            "[[claim]]\ntarget='a'\nsource='b'\nequality = { why = 'x', ulp = true }",
            "ulp: expected an integer of 0 or more, got True",
        ),
        (
            "[[claim]]\ntarget='a'\nsource='b'\nequality = { why = 'x', atol = nan }",
            "atol: expected a number of 0 or more",
        ),
        (
            "[[claim]]\ntarget='{a:enum}'\nsource='b'\ncaptures = { a = [] }",
            "captures.a: expected a list",
        ),
        ("claim = 3", "claim: expected tables [[claim]], got 3"),
        ("claim = [3]", "[[claim]] 1: expected a table, got 3"),
        ("claims = []", "c.toml: expected known keys, got 'claims'"),
        (
            "mapping = 'copied'",
            "mapping: expected one of 'independent', 'shared with the converter'",
        ),
        ("[[drop]]\nsource = 'a'", "[[drop]] 1: expected the key 'reason', got none"),
        ("[[drop]]\ntarget = 'a'\nreason = 'r'", "[[drop]] 1: expected the key 'source', got none"),
        (
            "[[derived]]\nsource='a'\ntarget='a'\nreason='r'",
            "[[derived]] 1: expected the key 'source'",
        ),
        ("[[drop]]\nsource = '{n + 1}'\nreason = 'r'", "expected a pattern without expressions"),
        ("[[new]]\ntarget = 'a'\nreason = 'r'\nvalue = []", "value: expected a number, or bits"),
        ("[[tie]]\nside = 'left'\nleaves = ['a', 'b']", "side: expected one of 'source', 'target'"),
        (
            "[[tie]]\nside = 'source'\nleaves = ['a']",
            "leaves: expected two different leaves or more",
        ),
        (
            "[[like]]\ngroup='mu'\nof='p'\nsource=['a']\ntarget=['a','b']",
            "source: expected [beginning",
        ),
        (
            "[[like]]\ngroup='mu'\nof='p'\nsource=['a','']\ntarget=['a','b']",
            "of: expected a group of",
        ),
        ("[facts]\n'a b' = 1", "[facts]: expected a name of letters, digits and _, got 'a b'"),
        ("[facts]\na = 1979-05-27", "[facts]: a: expected a number, a word or a list of them"),
        (
            "[facts]\na = {}",
            "a: expected value, source, target, count, source_type, target_type, default, got none",
        ),
        ("[facts]\na = { vlaue = 1 }", "[facts]: a: expected known keys, got 'vlaue'"),
        ("[facts]\na = { value = 'b + 1' }", "expected a name of a fact or a capture, got 'b'"),
        ("[facts]\na = { count = 'x.y' }", "count: expected a pattern with one capture"),
        (
            "[[claim]]\ntarget='a'\nsource='b'\ntransform=['spin()']",
            "expected a known step, got 'spin'",
        ),
        (
            "[[claim]]\ntarget='a'\nsource='b'\ntransform=['spin']",
            "transform 1: expected a step such as",
        ),
        (
            "[[claim]]\ntarget='a'\nsource='b'\ntransform=['squeeze()']",
            "expected squeeze(axis), got",
        ),
        (
            "[[claim]]\ntarget='a'\nsource='b'\ntransform=['squeeze(0, 1)']",
            "expected squeeze(axis), got",
        ),
        ("[[claim]]\ntarget='a'\nsource='b'\ntransform=['cast()']", "0 arguments"),
        (
            "[[claim]]\ntarget='a'\nsource='b'\ntransform=['cast(F16, round=RNE)']",
            "the option 'round'",
        ),
        (
            "[[claim]]\ntarget='a'\nsource='b'\ntransform=['index(0, layer)']",
            "got 'layer' in 'index(0",
        ),
        (
            "[[claim]]\ntarget='a'\nsource='b'\ntransform=['gate_up(upside)']",
            "upside, where gate_up, up_gate, interleaved is allowed",
        ),
        (
            "[[claim]]\ntarget='a'\nsource='b.{e:int}'\ntransform=['index(0, e)', 'stack(0)']",
            "expected a name of a fact or a capture, got 'e'",
        ),
        ("[[claim]]\ntarget='a'\nsource='b'\nwhere='n > 2'", "[[claim]] 1: where: expected a name"),
        ("[[claim]]\ntarget='a.{i}'\nsource='b'", "expected a kind for the capture {i}"),
        (
            "[[claim]]\ntarget='a.{i + 1}'\nsource='b'",
            "expected a name of a fact or a capture, got 'i'",
        ),
        (
            "[[claim]]\ntarget='a.{i:int}.{i + 1}'\nsource='b'",
            "expected a source with all captures, as the target's name is computed",
        ),
        (
            "[[claim]]\ntarget='a'\nsource='b.{i:int}.{i + 1}'",
            "expected a pattern without expressions where {i} is gathered",
        ),
        ("[facts]\ni = 1\n[[claim]]\ntarget='a.{i:int}'\nsource='b'", "got {i}, which is both"),
        (
            "[[claim]]\ntarget='a'\nsource='b'\n[[like]]\ngroup='mu'\nof='params'\n"
            "source=['','m']\ntarget=['','m']\ncast='flip(0)'",
            "cast: expected a step that changes values, got 'flip(0)'",
        ),
    ],
)
def test_a_file_that_is_wrong_says_where(text: str, expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        claims(text)
    assert expected in caught.value.message
    assert caught.value.message.startswith("c.toml: ")
    assert caught.value.hint


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a claim file"):
        load_claims(tmp_path / "none.toml")
    for text, words in (
        ("schema = ", "expected TOML"),
        ("", "expected the key 'schema'"),
        ('schema = "lockstep.claims/9"', "schema: expected 'lockstep.claims/1'"),
        ("a = 1\na = 2", "expected TOML"),
    ):
        path = tmp_path / "claims.toml"
        path.write_text(text)
        with pytest.raises(UsageError, match=words):
            load_claims(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="expected TOML"):
        load_claims(path)
    for name in ("nobody", "../claims", "a/b", ""):
        with pytest.raises(UsageError, match="expected the name of a ready claim file"):
            load_claims(f"ready:{name}")


# --- facts


def test_facts_come_from_four_places_that_must_agree() -> None:
    text = """
    [facts]
    kv = { source = "num_kv", target = "llama.kv", default = "heads" }
    heads = { source = "text_config.heads", count = "l.{i:int}.w" }
    size = { value = "width // heads" }
    width = 12
    word = { value = "'neox'", source = "style" }
    eps = { source = "eps", target = "eps" }
    [[claim]]
    target = "l.{i:int}.w"
    source = "l.{i}.w"
    """
    leaves = {f"l.{i}.w": MATRIX for i in (0, 1, 10)}
    source = {"text_config": {"heads": 3}, "style": "neox", "eps": 1e-5}
    found = plan(
        text, leaves, leaves, source_facts=source, target_facts={"eps": 9.99999974737875e-06}
    )
    assert not found.problems
    assert found.facts == {
        "kv": 3, "heads": 3, "size": 4, "width": 12, "word": "neox", "eps": 1e-5,
    }  # fmt: skip

    source["text_config"] = {"heads": 4}
    source["num_kv"] = 8
    found = plan(
        text, leaves, leaves, source_facts=source, target_facts={"llama.kv": 2, "eps": 1e-5}
    )
    assert sorted(messages(found)) == [
        "fact: fact heads: expected one value, got 4 from the source's text_config.heads and 3 "
        "from the number of l.{i:int}.w",
        "fact: fact kv: expected one value, got 8 from the source's num_kv and 2 from the "
        "target's llama.kv",
    ]


def test_a_fact_may_be_the_type_of_a_leaf() -> None:
    text = """
    [facts]
    stored = { target_type = "w" }
    both = { source_type = "w", target_type = "w" }
    [[claim]]
    target = "w"
    source = "w"
    transform = ["cast(stored)"]
    """
    found = plan(text, {"w": MATRIX}, {"w": ((4, 6), "BF16")})
    assert found.facts["stored"] == "BF16"
    assert messages(found) == [
        "fact: fact both: expected one value, got 'F32' from the type of the source's w "
        "and 'BF16' from the type of the target's w"
    ]
    assert claim(found, "w").text.startswith("cast(BF16, ")


def test_a_fact_that_nobody_knows_is_a_problem_once_for_each_rule() -> None:
    text = """
    [facts]
    n = { source = "nowhere" }
    m = { value = "n + 1" }
    a = { value = "b" }
    b = { value = "a" }
    z = { value = "1 // 0" }
    [[claim]]
    target = "{i:int}.w"
    source = "{i}.w"
    transform = ["rope_half_to_interleaved(n)"]
    [[drop]]
    source = "{i:int}.w"
    where = "i == m"
    reason = "r"
    """
    leaves = {f"{i}.w": MATRIX for i in range(3)}
    found = messages(plan(text, leaves, leaves))
    assert "fact: claim 1: expected a value for the fact n, got none" in found
    assert "fact: drop 1: expected a value for the fact m, got none" in found
    assert sum(m.startswith("fact: fact") for m in found) == 6  # n, m, a, b, z twice
    assert any("got an error: integer division" in m for m in found)
    assert any(m.startswith("empty: ") for m in found)


def test_facts_are_looked_up_by_key_then_by_path() -> None:
    facts = {"a.b": 1, "a": {"b": 2, "c": {"d": 3}}, "x.y": {"z": 4}}
    assert [lookup(facts, key) for key in ("a.b", "a.c.d", "x.y.z", "a.q", "q")] == [
        1, 3, 4, None, None,
    ]  # fmt: skip
    assert agree(1e-5, 9.99999974737875e-06)
    assert agree([1, 2], (1, 2))
    assert agree(True, 1)
    assert not agree(1.0, 1.0001)
    assert not agree([1], [1, 1])
    assert not agree("1", 1)
    assert agree(1e300, 1e300)
    assert not agree(1e300, 2e300)


# --- rules over two checkpoints


def test_claims_stand_in_the_order_of_the_targets_file() -> None:
    text = """
    [[claim]]
    target = "b.{layer:int}.w"
    source = "a.{layer}.w"
    transform = ["transpose()", "cast(BF16)"]
    """
    order = (10, 2, 1, 0)
    found = plan(
        text,
        {f"a.{i}.w": MATRIX for i in range(11)},
        {f"b.{i}.w": ((6, 4), "BF16") for i in order},
    )
    assert [c.target for c in found.claims] == [f"b.{i}.w" for i in order]
    one = claim(found, "b.10.w")
    assert (one.id, one.rule, one.group, one.sources) == (
        "b.10.w",
        "claim 1",
        "params",
        ("a.10.w",),
    )
    assert one.layout is not None
    assert one.layout.shape == (6, 4)
    assert one.text.startswith("transpose() | cast(BF16, rounding=RNE")
    assert [move.target.name for move in one.values] == ["BF16"]
    assert [p.where for p in found.problems] == [f"source a.{i}.w" for i in range(3, 10)]
    assert found.digest == claims(text).digest


def test_a_cast_to_the_type_that_is_there_is_the_identity() -> None:
    text = """
    [facts]
    kind = { target_type = "w" }
    [[claim]]
    target = "{x:any}"
    source = "{x}"
    transform = ["cast(kind)"]
    """
    leaves: dict[str, Spec] = {"w": MATRIX, "v": MATRIX}
    found = plan(text, leaves, leaves)
    assert not found.problems
    assert [(c.is_identity, c.text) for c in found.claims] == [(True, "identity")] * 2
    target: dict[str, Spec] = dict.fromkeys(leaves, ((4, 6), "BF16"))
    one, other = plan(text, leaves, target).claims
    assert not one.is_identity
    assert one.values[0] is other.values[0]  # it may hold a table: one for all, not one for each
    flushed = text.replace("cast(kind)", "cast(kind, subnormals=flush)")
    assert not plan(flushed, leaves, leaves).claims[0].is_identity
    listed = text.replace("cast(kind)", "scale([2])")
    assert (
        "expected a number or a word for [2], got a list"
        in messages(plan(listed, leaves, leaves))[0]
    )


def test_a_gather_is_in_the_order_of_numbers_or_of_the_words() -> None:
    text = """
    [[claim]]
    target = "stacked"
    source = "l.{layer:int}.w"
    transform = ["stack(0)"]
    [[claim]]
    target = "both.{layer:int}"
    source = "m.{layer}.{which:enum}"
    captures = { which = ["up", "gate"] }
    transform = ["concat(0)"]
    """
    source = {f"l.{i}.w": MATRIX for i in (1, 10, 2, 0)}
    source |= {f"m.{i}.{w}": MATRIX for i in (0, 1) for w in ("gate", "up")}
    target: dict[str, Spec] = {"stacked": ((4, 4, 6), "F32")}
    target |= {f"both.{i}": ((8, 6), "F32") for i in (0, 1)}
    found = plan(text, source, target)
    assert not found.problems
    assert claim(found, "stacked").sources == ("l.0.w", "l.1.w", "l.2.w", "l.10.w")
    assert claim(found, "both.1").sources == ("m.1.up", "m.1.gate")


def test_sources_may_be_gathered_and_joined_on_their_own() -> None:
    text = """
    [[claim]]
    target = "gate_up"
    sources = [
      { name = "e.{e:int}.gate", transform = ["stack(0)"] },
      { name = "e.{e:int}.up", transform = ["stack(0)"] },
    ]
    transform = ["concat(1)", "permute(0, 2, 1)"]
    """
    source = {f"e.{i}.{w}": MATRIX for i in range(11) for w in ("gate", "up")}
    found = plan(text, source, {"gate_up": ((11, 6, 8), "F32")})
    assert not found.problems
    assert claim(found, "gate_up").text == "[stack(0); stack(0)] | concat(1) | permute(0, 2, 1)"


def test_a_scatter_uses_the_captures_of_the_target_as_numbers() -> None:
    text = """
    [[claim]]
    target = "l.{layer:int}.w"
    source = "stacked"
    transform = ["index(0, layer)"]
    """
    found = plan(text, {"stacked": ((3, 4, 6), "F32")}, {f"l.{i}.w": MATRIX for i in range(3)})
    assert not found.problems
    assert claim(found, "l.2.w").text == "index(0, 2)"
    found = plan(text, {"stacked": ((3, 4, 6), "F32")}, {f"l.{i}.w": MATRIX for i in (0, 1, 3)})
    assert (
        "index: expected a place from -3 to 2 on axis 0 of (3, 4, 6), got 3" in messages(found)[0]
    )
    assert [p.kind for p in found.problems] == ["shape", "gap", "gap"]


def test_layers_that_are_alike_keep_leaves_and_captures_of_their_own() -> None:
    text = """
    [[claim]]
    target = "l.{layer:int}"
    sources = [
      { name = "s", transform = ["index(0, layer)"] },
      { name = "x.{layer}.{e:int}", transform = ["index(0, e)"] },
      "s.{layer}",
    ]
    transform = ["stack(0)"]
    [[duplicate]]
    source = "{x:any}"
    reason = "a test"
    """
    source: dict[str, Spec] = {"s": ((2, 6), "F32"), "s.0": ((6,), "F32"), "s.1": ((6,), "F32")}
    source |= {f"x.{layer}.{e}": MATRIX for layer in range(2) for e in range(4)}
    found = plan(text, source, {f"l.{i}": ((6, 6), "F32") for i in range(2)})
    for i in range(2):
        made = claim(found, f"l.{i}")
        assert made.layout is not None
        rows = [(p.leaf, p.src // 6, p.dst // 6) for p in made.layout.pieces]
        x = [(f"x.{i}.{e}", e, e + 1) for e in range(4)]
        assert rows == [("s", i, 0), *x, (f"s.{i}", 0, 5)]
        assert made.sources == ("s", *(name for name, _, _ in x), f"s.{i}")
    assert {p.kind for p in found.problems} == {"gap"}  # the rows of x that nobody takes


def test_layers_in_cycles_are_told_apart_by_a_condition() -> None:
    text = """
    [[claim]]
    target = "block_{r:int}"
    source = "layers.{layer:int}"
    where = "layer % 3 == r and layer < 6"
    transform = ["stack(0)"]
    [[claim]]
    target = "rest_{r:int}"
    source = "layers.{r + 6}"
    """
    source = {f"layers.{i}": MATRIX for i in range(8)}
    target: dict[str, Spec] = {f"block_{r}": ((2, 4, 6), "F32") for r in range(3)}
    target |= {f"rest_{r}": MATRIX for r in range(2)}
    found = plan(text, source, target)
    assert not found.problems
    assert claim(found, "block_1").sources == ("layers.1", "layers.4")
    assert claim(found, "rest_1").sources == ("layers.7",)


def test_names_of_the_target_may_be_computed_from_a_source() -> None:
    text = """
    [[claim]]
    target = "b.{layer // 2}.{layer % 2}"
    source = "a.{layer:int}"
    where = "layer != 3"
    """
    source = {f"a.{i}": MATRIX for i in range(5)}
    found = plan(text, source, {"b.1.0": MATRIX, "b.0.1": MATRIX, "b.0.0": MATRIX})
    assert [(c.target, c.sources[0]) for c in found.claims] == [
        ("b.1.0", "a.2"), ("b.0.1", "a.1"), ("b.0.0", "a.0"),
    ]  # fmt: skip
    assert messages(found)[0] == (
        "gap: claim 1: source a.4: expected the target b.2.0, got none of that name"
    )
    text = "[[claim]]\ntarget = 'b.{layer // 2}'\nsource = 'a.{layer:int}'"
    found = plan(text, {"a.0": MATRIX, "a.1": MATRIX}, {"b.0": MATRIX})
    assert "overlap: claim 1: target b.0: expected one source, got a.1 as well" in messages(found)


def test_everything_that_does_not_add_up_is_listed_at_once() -> None:
    text = """
    [[claim]]
    target = "same.{i:int}"
    source = "s.{i}"
    [[claim]]
    target = "same.0"
    source = "other"
    [[claim]]
    target = "typo.{i:int}"
    source = "s.{i}"
    [[claim]]
    target = "wide"
    source = "wide"
    [[claim]]
    target = "turned"
    source = "turned"
    [[claim]]
    target = "lost"
    sources = ["gone", "gone too"]
    transform = ["concat(0)"]
    [[claim]]
    target = "two"
    sources = ["two.a", "two.b"]
    [[drop]]
    source = "nothing"
    reason = "r"
    [[new]]
    target = "made"
    reason = "r"
    value = 0.1
    [[tie]]
    side = "target"
    leaves = ["nobody", "no one"]
    """
    source: dict[str, Spec] = {
        "s.0": MATRIX, "s.1": MATRIX, "other": MATRIX, "wide": MATRIX, "turned": MATRIX,
        "two.a": MATRIX, "two.b": MATRIX,
    }  # fmt: skip
    target: dict[str, Spec] = {
        "same.0": MATRIX, "same.1": MATRIX, "wide": ((4, 6), "BF16"), "turned": ((6, 4), "F32"),
        "lost": MATRIX, "two": ((8, 6), "F32"), "made": MATRIX,
    }  # fmt: skip
    found = plan(text, source, target)
    shown = messages(found)
    for words in (
        "overlap: target same.0: expected one rule to make it, got claim 1 and claim 2",
        "unused: claim 3: expected leaves of the target that match 'typo.{i:int}', got none; 2 of",
        "type: claim 4: target wide: expected the target's type BF16, got F32 from identity, made",
        "shape: claim 5: target turned: expected the target's shape (6, 4), got (4, 6) from",
        "gap: claim 6: target lost: expected the source gone, got none of that name (and 1 more)",
        "shape: claim 7: target two: expected a step that joins 2 arrays, got none",
        "unused: drop 1: expected leaves of the source that match 'nothing', got none",
        "type: new 1: target made: value: expected a number that F32 holds exactly, got 0.1",
        "unused: tie 1: expected one of the tied leaves in the target, got none of nobody, no one",
        "gap: source other: expected every element to be used by a claim",
    ):
        assert any(m.startswith(words) for m in shown), words
    assert [c.target for c in found.claims] == ["same.0", "same.1"]
    assert all(p.hint for p in found.problems)


def test_no_claims_at_all_are_a_problem() -> None:
    found = plan("", {}, {})
    assert [p.kind for p in found.problems] == ["empty"]
    found = plan("[[drop]]\nsource = 'a'\nreason = 'r'", {"a": MATRIX}, {})
    assert [p.kind for p in found.problems] == ["empty"]


def test_optional_rules_may_match_nothing_but_not_half() -> None:
    text = """
    [[claim]]
    target = "{i:int}.bias"
    source = "{i}.b"
    optional = true
    reason = "some models have none"
    [[claim]]
    target = "w"
    source = "w"
    """
    assert not plan(text, {"w": MATRIX}, {"w": MATRIX}).problems
    found = plan(text, {"w": MATRIX}, {"w": MATRIX, "0.bias": ((4,), "F32")})
    assert "expected the source 0.b, got none of that name" in messages(found)[0]
    assert [p.kind for p in found.problems] == ["gap", "gap"]


def test_new_constants_are_claims_and_the_rest_are_excuses() -> None:
    text = """
    [[claim]]
    target = "w"
    source = "w"
    [[new]]
    target = "pad.{i:int}"
    reason = "room"
    value = 1.0
    group = "pads"
    [[new]]
    target = "seed"
    reason = "random"
    [[drop]]
    source = "old.{i:int}"
    where = "i != 1"
    reason = "unused"
    [[derived]]
    source = "old.1"
    reason = "a sum"
    """
    source = {"w": MATRIX} | {f"old.{i}": MATRIX for i in range(3)}
    target: dict[str, Spec] = {"w": MATRIX, "pad.0": ((3,), "BF16"), "seed": MATRIX}
    found = plan(text, source, target)
    assert not found.problems
    made = claim(found, "pad.0")
    assert (made.sources, made.group, made.rule, made.text) == (
        ((), "pads", "new 1", "constant(1.0)")
    )
    assert made.layout is not None
    assert {piece.fill for piece in made.layout.pieces} == {b"\x80\x3f"}
    assert [(e.side, e.leaf, e.kind, e.rule) for e in found.excuses] == [
        ("source", "old.0", "drop", "drop 1"),
        ("source", "old.2", "drop", "drop 1"),
        ("target", "seed", "new", "new 2"),
        ("source", "old.1", "derived", "derived 1"),
    ]


def test_values_that_are_no_arrays_are_claimed_as_they_are() -> None:
    text = """
    [[claim]]
    group = "step"
    target = "state/{x:str}"
    source = "{x}"
    """
    found = plan(text, {"step": ((), "int")}, {"state/step": ((), "int")})
    assert not found.problems
    made = claim(found, "state/step")
    assert (made.layout, made.sources, made.is_identity) == (None, ("step",), True)
    for source, target in (("int", "float"), ("int", "I64"), ("I64", "int")):
        found = plan(text, {"step": ((), source)}, {"state/step": ((), target)})
        assert found.problems[0].kind == "type", (source, target)
    found = plan(
        text + 'transform = ["flatten()"]', {"step": ((), "int")}, {"state/step": ((), "int")}
    )
    assert "expected no steps for a value that is no array, got flatten()" in messages(found)[0]


def test_quantised_leaves_keep_their_blocks() -> None:
    text = "[[claim]]\ntarget = 'q'\nsource = 'w'\ntransform = ['rope_half_to_interleaved(2)']"
    found = plan(text, {"w": ((8, 64), "Q8_0")}, {"q": ((8, 64), "Q8_0")})
    assert not found.problems
    made = claim(found, "q")
    assert made.layout is not None
    assert made.layout.shape == (8, 2)
    text = text.replace("rope_half_to_interleaved(2)", "transpose()")
    found = plan(text, {"w": ((8, 64), "Q8_0")}, {"q": ((64, 8), "F32")})
    assert "expected whole blocks of 32 numbers (Q8_0)" in messages(found)[0]


# --- ties

TIED = """
[[claim]]
target = "head"
source = "lm_head"
optional = true
reason = "tied"
[[claim]]
target = "tok"
source = "embed"
[[tie]]
side = "{side}"
leaves = {leaves}
"""


def tied(side: str, source: list[str], target: list[str]) -> Plan:
    leaves = ["lm_head", "embed"] if side == "source" else ["head", "tok"]
    text = TIED.replace("{side}", side).replace("{leaves}", str(leaves))
    return plan(text, dict.fromkeys(source, MATRIX), dict.fromkeys(target, MATRIX))


def test_a_tie_excuses_what_one_side_leaves_out() -> None:
    found = tied("source", ["embed"], ["tok", "head"])  # untied in the target: both are embed
    assert not found.problems
    assert [c.sources for c in found.claims] == [("embed",), ("embed",)]
    assert [(e.leaf, e.kind, e.rule) for e in found.excuses] == [("embed", "duplicate", "tie 1")]
    found = tied("source", ["embed", "lm_head"], ["tok"])  # lm_head is proved equal, not dropped
    assert not found.problems
    assert found.ties[0].leaves == ("lm_head", "embed")
    found = tied("source", ["embed", "lm_head"], ["tok", "head"])
    assert (found.problems, found.excuses) == ((), ())
    assert [c.sources for c in found.claims] == [("embed",), ("lm_head",)]


def test_a_tie_of_the_target_lets_one_source_make_both() -> None:
    text = TIED.replace("{side}", "target").replace("{leaves}", "['head', 'tok']")
    text = text.replace("lm_head", "embed")
    found = plan(text, {"embed": MATRIX}, {"head": MATRIX, "tok": MATRIX})
    assert not found.problems
    assert found.ties[0].leaves == ("head", "tok")
    assert found.excuses[0].kind == "duplicate"
    without = text[: text.index("[[tie]]")]
    found = plan(without, {"embed": MATRIX}, {"head": MATRIX, "tok": MATRIX})
    assert [p.kind for p in found.problems] == ["overlap"]


def test_a_tie_between_leaves_that_differ_is_a_problem() -> None:
    text = TIED.replace("{side}", "source").replace("{leaves}", "['lm_head', 'embed']")
    wider: Spec = ((4, 7), "F32")
    found = plan(text, {"lm_head": wider, "embed": MATRIX}, {"head": wider, "tok": MATRIX})
    assert [p.kind for p in found.problems] == ["tie"]
    assert "lm_head F32 (4, 7), embed F32 (4, 6)" in found.problems[0].message


# --- moments

LIKE = """
[[claim]]
target = "p/{x:str}/kernel"
source = "params.{x}.weight"
transform = ["cast(BF16)", "transpose()", "pad(0, 0, 2, 0)"]
[[like]]
group = "mu"
of = "params"
source = ["params.", "opt.", ".mu"]
target = ["p/", "opt/mu/"]
"""


def test_moments_follow_the_moves_of_their_parameters_and_not_the_casts() -> None:
    source = {"params.a.weight": MATRIX, "params.b.weight": MATRIX, "opt.a.weight.mu": MATRIX}
    target: dict[str, Spec] = {"opt/mu/a/kernel": ((8, 4), "F32")}
    target |= {f"p/{x}/kernel": ((8, 4), "BF16") for x in "ab"}
    found = plan(LIKE, source, target)
    assert not found.problems  # b has no moments on either side
    moment = claim(found, "opt/mu/a/kernel")
    assert (moment.rule, moment.group, moment.values) == ("like 1 (claim 1)", "mu", ())
    assert moment.text == "transpose() | pad(0, 0, 2, 0)"
    target["opt/mu/a/kernel"] = ((8, 4), "BF16")
    assert plan(LIKE, source, target).problems[0].kind == "type"
    found = plan(LIKE + 'cast = "cast(BF16, rounding=RTZ)"', source, target)
    assert not found.problems
    assert claim(found, "opt/mu/a/kernel").text.endswith(
        "| cast(BF16, rounding=RTZ, subnormals=keep, nan=keep, overflow=inf)"
    )


def test_moments_on_one_side_only_are_a_problem() -> None:
    params: dict[str, Spec] = {"p/a/kernel": ((8, 4), "BF16")}
    moment: dict[str, Spec] = {"opt/mu/a/kernel": ((8, 4), "F32")}
    found = plan(LIKE, {"params.a.weight": MATRIX}, params | moment)
    assert messages(found)[0].startswith(
        "gap: like 1 (claim 1): expected the source to have opt.a.weight.mu, as the follower of"
    )
    found = plan(LIKE, {"params.a.weight": MATRIX, "opt.a.weight.mu": MATRIX}, params)
    assert "expected the target to have opt/mu/a/kernel" in messages(found)[0]
    found = plan(LIKE, {"params.a.weight": MATRIX}, params)
    assert messages(found) == [
        "unused: like 1: expected leaves that follow those of the group 'params', got none on "
        "either side"
    ]
    optional = LIKE + 'optional = true\nreason = "resumes cold"'
    assert not plan(optional, {"params.a.weight": MATRIX}, params).problems


# --- ambiguity


def test_what_shapes_cannot_tell_is_said_once_for_each_class() -> None:
    text = """
    [facts]
    n_heads = 2
    n_kv_heads = 2
    [[claim]]
    target = "{i:int}.{w:str}"
    source = "{i}.{w}"
    [[claim]]
    target = "q"
    source = "q"
    transform = ["rope_half_to_interleaved(n_heads)"]
    [[claim]]
    target = "fused"
    sources = ["gate", "up"]
    transform = ["gate_up(gate_up)"]
    """
    source: dict[str, Spec] = {f"{i}.{w}": MATRIX for i in range(50) for w in ("gate", "up")}
    source |= {"q": ((8, 4), "F32"), "gate": ((4, 8), "F32"), "up": ((4, 8), "F32")}
    source["0.norm"] = ((6,), "F32")
    target = dict(source) | {"fused": ((8, 8), "F32")}
    del target["gate"], target["up"]
    found = plan(text, source, target)
    assert not found.problems
    shown = [(a.kind, a.side, len(a.leaves)) for a in found.ambiguities]
    assert shown == [
        ("same_shape", "target", 100),
        ("half", "target", 1),
        ("square", "target", 1),
        ("same_shape", "source", 100),
        ("same_shape", "source", 2),
        ("equal_heads", "target", 1),
    ]
    assert all(len(a.message) < 400 for a in found.ambiguities)
    assert "100 leaves of the target are F32 (4, 6)" in found.ambiguities[0].message


def test_leaves_of_unlike_shapes_are_not_ambiguous() -> None:
    text = "[[claim]]\ntarget = '{x:any}'\nsource = '{x}'"
    leaves: dict[str, Spec] = {
        "a": MATRIX,
        "b": ((4, 7), "F32"),
        "c": ((4, 6), "BF16"),
        "s": ((), "int"),
    }
    assert plan(text, leaves, leaves).ambiguities == ()


# --- the Python spelling and the ready files


def test_the_python_spelling_resolves_like_the_file() -> None:
    made = ClaimFile(
        claims=(ClaimRule(target="{x:any}", sources=(From(name="{x}"),)),),
        likes=(LikeRule(group="mu", of="params", source=("", "mu."), target=("", "mu.")),),
    )
    leaves = store({"a": MATRIX, "mu.a": MATRIX})
    found = resolve(made, leaves, leaves)
    assert sorted(p.kind for p in found.problems) == ["overlap"]
    with pytest.raises(UsageError, match=r"claims: \[\[claim\]\] 1: expected at least one source"):
        resolve(ClaimFile(claims=(ClaimRule(target="a", sources=()),)), leaves, leaves)
    with pytest.raises(UsageError, match=r"claims: \[\[drop\]\] 1: expected a reason"):
        resolve(
            ClaimFile(excuses=(ExcuseRule(kind="drop", side="source", leaf="a", reason=""),)),
            leaves,
            leaves,
        )


def test_every_ready_file_is_a_claim_file() -> None:
    ready = sorted((Path(resolve.__code__.co_filename).parent / "ready").glob("*.toml"))
    assert ready
    for path in ready:
        found = load_claims(f"ready:{path.stem}")
        assert found.claims, path.stem
        assert found.title, path.stem
        assert parse_claims(tomllib.loads(found.to_toml()), "x") == found, path.stem
