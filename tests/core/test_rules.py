"""Rules over scores: their arithmetic, what is refused and where, and their gradients."""

import math
import operator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from d3po_core.candidates.rules import LARGEST_POWER, LONGEST, Rule

SCORES = {
    "a": torch.tensor([1.0, -2.0, 0.5, 3.0]),
    "b": torch.tensor([0.25, 4.0, -1.5, 3.0]),
    "c": torch.tensor([2.0, 2.0, 1.0, -1.0]),
}


@pytest.mark.parametrize(
    "text, by_hand",
    [
        ("a", lambda a, b, c: a),
        ("-a + 2 * b - c / 4", lambda a, b, c: -a + 2 * b - c / 4),
        ("a - b - c", lambda a, b, c: (a - b) - c),
        ("+c ** 3 - a ** -2", lambda a, b, c: c**3 - 1 / a / a),
        ("min(a, b, c) + max(a, 0)", lambda a, b, c: min(a, b, c) + max(a, 0)),
        ("abs(a - b)", lambda a, b, c: abs(a - b)),
        ("clip(a, -1, c)", lambda a, b, c: min(max(a, -1), c)),
        ("(a > b) - (a <= b) + 10 * (a == b) + 100 * (c != 2)",
         lambda a, b, c: (a > b) - (a <= b) + 10 * (a == b) + 100 * (c != 2)),
        ("(a < 1) + 2 * (b >= 3)", lambda a, b, c: (a < 1) + 2 * (b >= 3)),
        ("where(c > 1, a,\n  b)", lambda a, b, c: a if c > 1 else b),
        ("where(a > 0, 1, 2 ** 3)", lambda a, b, c: 1 if a > 0 else 8),
    ],
)  # fmt: skip
def test_a_rule_is_pythons_own_arithmetic_on_each_image(text, by_hand):
    expected = [float(by_hand(*map(float, one))) for one in zip(*SCORES.values())]
    assert Rule.read(text)(SCORES).tolist() == pytest.approx(expected)


def test_a_rule_names_the_scores_that_it_uses():
    assert Rule.read("max(c, abs(a)) - c").names == ("a", "c")


PAIRS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "<": operator.lt, ">=": operator.ge}
quarters = st.integers(-16, 16).map(lambda n: n / 4)  # which float32 is exact in
leaves = st.one_of(
    st.sampled_from("abc").map(lambda name: (name, lambda scores: scores[name])),
    quarters.map(lambda x: (str(x), lambda scores: x)),
)
trees = st.recursive(
    leaves,
    lambda inner: st.tuples(inner, st.sampled_from(sorted(PAIRS)), inner).map(
        lambda t: (f"({t[0][0]} {t[1]} {t[2][0]})", lambda s: float(PAIRS[t[1]](t[0][1](s), t[2][1](s))))
    ),
    max_leaves=5,
)


@given(trees)
def test_any_tree_of_operations_is_gone_through_as_written(tree):
    text, by_hand = tree
    expected = [by_hand({name: float(own[i]) for name, own in SCORES.items()}) for i in range(4)]
    assert Rule.read(f"{text} + 0 * a")(SCORES).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    "text, place, why",
    [
        ("a +", "character 4", "cannot be read"),
        ("a b", "", "cannot be read"),
        ("", "character 1", "cannot be read"),
        ("a + e", "character 5", "e is no score; these are named a, b, c, d"),
        ("a + ab", "character 5", "ab is no score"),
        ("1 + 2", "", "uses no score"),
        ("a + min(b)", "character 5", "min takes two or more values, not 1"),
        ("clip(a, 1)", "character 1", "clip takes 3 values, not 2"),
        ("min(*a, b)", "character 5", "rules have"),
        ("clip(a, lo=1, hi=2)", "character 1", "rules have"),
        ("0 * a + __import__('os').getcwd()", "character 9", "rules have"),
        ("a.data", "character 1", "rules have"),
        ("a[0]", "character 1", "rules have"),
        ("(lambda: a)()", "character 1", "rules have"),
        ("[a for b in c]", "character 1", "rules have"),
        ("a if b else c", "character 1", "rules have"),
        ("a < b < c", "character 1", "rules have"),
        ("a and b", "character 1", "rules have"),
        ("not a", "character 1", "rules have"),
        ("a // b", "character 1", "rules have"),
        ("a % 2", "character 1", "rules have"),
        ("a << 9", "character 1", "rules have"),
        ("(a := 3)", "character 2", "rules have"),
        ("a + True", "character 5", "here must be a number"),
        ("a + 'é' + 1j", "character 5", "here must be a number"),
        ("a + 1j", "character 5", "here must be a number"),
        ("a * 1e999", "character 5", "here must be a number"),
        ("a * " + "9" * 200, "character 5", "here must be a number"),
        ("a ** b", "character 6", "here must be a number, at most 16"),
        (f"a ** {LARGEST_POWER + 1}", "character 6", "here must be a number, at most 16"),
        ("a + 9 ** 9 ** 9", "character 10", "here must be a number, at most 16"),
        ("a" * (LONGEST + 1), "", f"{LONGEST + 1} characters, but may have {LONGEST}"),
        ("-" * 200 + "a", "", "operations are inside one another"),
        ("(" * 140 + "a" + ")" * 140 + "+", "", "cannot be read"),
        ("a\0", "", "cannot be read"),
    ],
)  # fmt: skip
def test_what_is_no_rule_is_refused_with_its_place(text, place, why):
    with pytest.raises(ValueError) as caught:
        Rule.read(text)
    assert place in str(caught.value) and why in str(caught.value)


def test_the_longest_and_deepest_rules_are_gone_through():
    assert Rule.read("+".join("a" * (LONGEST // 2 // 6)) + "+1" * 3)(SCORES)[0] == LONGEST // 2 // 6 + 3
    assert Rule.read("-" * 29 + "a")(SCORES)[0] == -1


def test_an_image_with_a_score_missing_has_none_whatever_the_rule_says():
    scores = SCORES | {"a": torch.tensor([1.0, math.nan, math.inf, 2.0])}
    assert Rule.read("where(a > 0, 1, 0)")(scores).isnan().tolist() == [False, True, True, False]
    assert Rule.read("b")(scores).isfinite().all()


def test_gradients_are_those_of_finite_differences():
    rule = Rule.read("a * max(b, 0.3) ** 2 / (1 + abs(c)) - where(a > b, clip(a, -1, 2), min(b, c))")
    leaves = [own.double().requires_grad_() for own in SCORES.values()]
    leaves[1].data[3] = 2.9  # where no two are equal
    assert torch.autograd.gradcheck(lambda *own: rule(dict(zip("abc", own))), leaves)
