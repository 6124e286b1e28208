"""Claim files: what they may say, and how they may be wrong."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from claim_stores import MATRIX, claims, plan, store
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.errors import InputError, UsageError
from lockstep.formats.leaf import ELEMENT_TYPES, Held, Key, Leaf, LeafPath
from lockstep.verify.claim import Equality
from lockstep.verify.claims.claim_file import (
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
from lockstep.verify.claims.expressions import evaluate, holds, parse_call, parse_expression
from lockstep.verify.claims.resolve import resolve
from lockstep.verify.claims.templates import NameIndex, patterns

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
        ("[[claim]]\ntarget = 'a'", "[[claim]] 1 (target a): expected either 'source' or"),
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
            "[[claim]] 1 (target a): sources 1: expected known keys, got 'x'",
        ),
        (
            "[[claim]]\ntarget='a'\nsource='b'\ntransform='x()'",
            "transform: expected a list of words",
        ),
        (
            "[[claim]]\ntarget='a'\nsource='b'\ntrans = []",
            "[[claim]] 1 (target a): expected known keys, got 'trans'",
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
        (
            "[[claim]]\ntarget='a'\nsource='b'\nwhere='n > 2'",
            "[[claim]] 1 (target a): where: expected a name",
        ),
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


# --- the Python spelling and the ready files


def test_the_python_spelling_resolves_like_the_file() -> None:
    made = ClaimFile(
        claims=(ClaimRule(target="{x:any}", sources=(From(name="{x}"),)),),
        likes=(LikeRule(group="mu", of="params", source=("", "mu."), target=("", "mu.")),),
    )
    leaves = store({"a": MATRIX, "mu.a": MATRIX})
    found = resolve(made, leaves, leaves)
    assert sorted(p.kind for p in found.problems) == ["overlap"]
    with pytest.raises(
        UsageError, match=r"claims: \[\[claim\]\] 1 \(target a\): expected at least"
    ):
        resolve(ClaimFile(claims=(ClaimRule(target="a", sources=()),)), leaves, leaves)
    with pytest.raises(UsageError, match=r"claims: \[\[drop\]\] 1: expected a reason"):
        resolve(
            ClaimFile(excuses=(ExcuseRule(kind="drop", side="source", leaf="a", reason=""),)),
            leaves,
            leaves,
        )


def test_every_ready_file_is_a_claim_file() -> None:
    ready = sorted((Path(resolve.__code__.co_filename).parents[1] / "ready").glob("*.toml"))
    assert ready
    for path in ready:
        found = load_claims(f"ready:{path.stem}")
        assert found.claims, path.stem
        assert found.title, path.stem
        assert parse_claims(tomllib.loads(found.to_toml()), "x") == found, path.stem


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("transform = ['transpse()']", "did you mean transpose? use one of reshape, "),
        ("transform = ['cast(bf16)']", "did you mean BF16? state it"),
        ("transform = ['widen(float32)']", "did you mean F32? state it"),
        ("transform = ['index(0, laier)']", "did you mean layer? state it"),
        ("where = 'laier > 1'", "did you mean layer? state it"),
        ("transfrm = ['transpose()']", "did you mean transform? remove 'transfrm'"),
        (
            "transfrm = ['transpose()']",
            "known here: source, optional, reason, target, transform,",
        ),
    ],
)
def test_a_word_that_is_nearly_known_is_asked_for(text: str, hint: str) -> None:
    rule = f"[[claim]]\ntarget = 'a.{{layer:int}}'\nsource = 'b.{{layer}}'\n{text}"
    with pytest.raises(UsageError) as caught:
        claims(rule)
    assert "[[claim]] 1 (target a.{layer:int})" in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("source", "target", "hint"),
    [
        ("F32", "BF16", "declare the change with cast(BF16)"),
        ("BF16", "F32", "declare the change with widen(F32) or cast(F32)"),
        ("I32", "BF16", "declare the change with cast(BF16)"),
        ("F32", "I32", "check the pattern: no step makes I32 of F32"),
    ],
)
def test_only_changes_of_type_that_can_be_are_offered(source: str, target: str, hint: str) -> None:
    rule = "[[claim]]\ntarget = 'a'\nsource = 'b'"
    (problem,) = plan(rule, {"b": ((4, 6), source)}, {"a": ((4, 6), target)}).problems
    assert (problem.kind, problem.hint) == ("type", hint)


def test_a_step_of_values_that_does_not_fit_is_a_problem_of_types() -> None:
    rule = "[[claim]]\ntarget = 'a'\nsource = 'b'\ntransform = ['{}']"
    wrong = plan(rule.format("widen(BF16)"), {"b": MATRIX}, {"a": ((4, 6), "BF16")}).problems
    assert [p.kind for p in wrong] == ["type"]
    wrong = plan(rule.format("reshape(5)"), {"b": MATRIX}, {"a": MATRIX}).problems
    assert [p.kind for p in wrong] == ["shape"]
