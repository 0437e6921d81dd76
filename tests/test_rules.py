import jax
import jax.numpy as jnp
import pytest

from bertjax.rules import combine, first_match, match, matcher, partition

TREE = {
    "encoder": {"layers": {"kernel": jnp.zeros(2)}, "norm": {"scale": jnp.zeros(2)}},
    "head": {"bias": jnp.zeros(1)},
}


def test_the_first_rule_that_matches_wins():
    rules = ((r"kernel$", "a"), (r"^encoder/", "b"), (r".*", "c"))
    expected = {"encoder": {"layers": {"kernel": "a"}, "norm": {"scale": "b"}}, "head": {"bias": "c"}}
    assert match(rules, TREE) == expected == matcher(rules)(TREE)
    assert first_match(rules, "encoder/norm/scale") == "b"


def test_a_parameter_without_a_rule_is_an_error_that_names_it():
    with pytest.raises(ValueError, match=r"no rule covers encoder/norm/scale, head/bias"):
        match(((r"kernel$", 1),), TREE)


def test_a_tree_is_partitioned_by_rules_and_combined_again():
    tree = {"student": {"a": 1, "b": {"c": 2}}, "teacher": {"a": 3}}
    kept, rest = partition((("^teacher/|/c$", False), (".*", True)), tree)
    assert kept == {"student": {"a": 1, "b": {"c": None}}, "teacher": {"a": None}}
    assert jax.tree.leaves(rest) == [2, 3] and combine(kept, rest) == tree
    with pytest.raises(ValueError, match="no rule covers teacher/a"):
        partition((("student", True),), tree)
