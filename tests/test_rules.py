import jax.numpy as jnp
import pytest

from bertjax.rules import match, matcher

TREE = {
    "encoder": {"layers": {"kernel": jnp.zeros(2)}, "norm": {"scale": jnp.zeros(2)}},
    "head": {"bias": jnp.zeros(1)},
}


def test_the_first_rule_that_matches_wins():
    rules = ((r"kernel$", "a"), (r"^encoder/", "b"), (r".*", "c"))
    expected = {"encoder": {"layers": {"kernel": "a"}, "norm": {"scale": "b"}}, "head": {"bias": "c"}}
    assert match(rules, TREE) == expected == matcher(rules)(TREE)


def test_a_parameter_without_a_rule_is_an_error_that_names_it():
    with pytest.raises(ValueError, match=r"no rule covers encoder/norm/scale, head/bias"):
        match(((r"kernel$", 1),), TREE)
