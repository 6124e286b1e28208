"""What claim files resolve to, and every way in which they do not add up."""

from __future__ import annotations

import pytest
from claim_stores import MATRIX, Spec, claim, claims, messages, plan

from lockstep.verify.claim import Plan
from lockstep.verify.claims.facts import agree, lookup

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
    assert "fact: claim 1 (target {i:int}.w): expected a value for the fact n, got none" in found
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
    assert [p.kind for p in found.problems] == ["shape"]


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
    assert [p.kind for p in found.problems] == ["gap"]


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


def test_a_claim_that_does_not_resolve_is_said_once_and_for_its_group() -> None:
    text = """
    [[claim]]
    group = "mu"
    target = "b.{i:int}"
    source = "a.{i}"
    """
    source = {f"a.{i}": MATRIX for i in range(3)}
    wrong: dict[str, Spec] = {"b.0": MATRIX, "b.1": ((6, 4), "F32"), "b.2": ((4, 6), "BF16")}
    found = plan(text, source, wrong)
    assert [(p.kind, p.group) for p in found.problems] == [("shape", "mu"), ("type", "mu")]
    assert [p.stops for p in found.problems] == [
        ("target b.1", "source a.1"),
        ("target b.2", "source a.2"),
    ]
    # a leaf of which no rule speaks is still a gap
    found = plan(text, {**source, "other": MATRIX}, wrong)
    assert [p.where for p in found.problems] == ["target b.1", "target b.2", "source other"]


def test_a_target_leaf_that_is_missing_is_named_with_the_rule_that_makes_it() -> None:
    text = """
    [[claim]]
    target = "blk.{i:int}.norm"
    source = "layers.{i}.norm"
    """
    source = {f"layers.{i}.norm": MATRIX for i in range(3)}
    found = plan(text, source, {"blk.0.norm": MATRIX, "blk.2.norm": MATRIX})
    assert messages(found) == [
        "gap: claim 1: the target lacks blk.1.norm, which the rule makes of layers.1.norm"
    ]
    assert found.problems[0].stops == ("target blk.1.norm", "source layers.1.norm")
    assert found.problems[0].hint.startswith("write the leaf")


@pytest.mark.parametrize("kind", ["str", "any"])
def test_numbers_that_are_gathered_as_text_are_a_problem(kind: str) -> None:
    text = f"""
    [[claim]]
    target = "stack"
    source = "a.{{i:{kind}}}"
    transform = ["stack(0)"]
    """
    numbers = {f"a.{i}": MATRIX for i in range(11)}
    found = plan(text, numbers, {"stack": ((11, 4, 6), "F32")})
    (problem,) = found.problems
    assert f"expected {{i:{kind}}} to gather words, got numbers" in problem.message
    assert "0, 1, 10, 2" in problem.message
    assert "{i:int}" in problem.hint
    assert not plan(text.replace(kind, "int"), numbers, {"stack": ((11, 4, 6), "F32")}).problems
    words = {f"a.{word}": MATRIX for word in ("up", "down")}
    assert not plan(text, words, {"stack": ((2, 4, 6), "F32")}).problems
