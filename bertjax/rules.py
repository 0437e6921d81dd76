"""Assign a value to every parameter by its name: ordered (regex, value) lists, first match wins.

Parameter names are an API: `encoder/layers/attention/query/kernel`. A parameter that no rule covers is an error, so
that renaming a module cannot silently change which parameters are decayed, frozen or sharded.
"""

import re
from collections.abc import Callable
from typing import Any

import jax

Rules = tuple[tuple[str, Any], ...]

NOT_NORM_NOR_BIAS: Rules = ((r"(^|/)(scale|bias)$", False), (r".*", True))
"""True for kernels and tables: BERT's set of decayed parameters, and those that LAMB adapts."""

EVERYTHING: Rules = ((r".*", True),)

STACKED: Rules = ((r"(^|/)layers/", True), (r".*", False))
"""True for parameters with a leading axis of layers: each slice of it is the tensor of one layer."""

VOCABULARY = r"(^|/)head/[^/]+/(bias$|decoder(/|$))"
"""Matches the parameters of a language head with an axis of the vocabulary, whatever its objective calls it.

Other heads have a bias only within a layer of theirs: head/pair/classifier/bias.
"""


def name_of(path: tuple[Any, ...]) -> str:
    """Return the keys of a tree path joined by slashes."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def first_match(rules: Rules, name: str) -> Any:
    """Return the value of the first rule whose regex is found in `name`. Raises KeyError if there is none."""
    for pattern, value in rules:
        if re.search(pattern, name):
            return value
    raise KeyError(name)


def match(rules: Rules, tree: Any) -> Any:
    """Replace every leaf by the value of the first rule whose regex is found in its name.

    Raises ValueError naming the leaves that no rule covers.
    """
    missed = []

    def value(path: tuple[Any, ...], _: Any) -> Any:
        try:
            return first_match(rules, name_of(path))
        except KeyError as error:
            missed.append(error.args[0])

    values = jax.tree_util.tree_map_with_path(value, tree)
    if missed:
        raise ValueError(f"no rule covers {', '.join(missed[:5])}: add one, or a last rule ('.*', …)")
    return values


def matcher(rules: Rules) -> Callable[[Any], Any]:
    """Curry `match` for optax, which takes masks as functions of the parameters."""
    return lambda tree: match(rules, tree)


def partition(chosen: Rules, tree: Any) -> tuple[Any, Any]:
    """Partition a tree by rules with values True and False: each of the two has None where the other has the leaf.

    None is no leaf to JAX: nothing is computed, stored or saved there. Raises ValueError as `match`.
    """
    choice = match(chosen, tree)
    kept = jax.tree.map(lambda leaf, keep: leaf if keep else None, tree, choice)
    return kept, jax.tree.map(lambda leaf, keep: None if keep else leaf, tree, choice)


def combine(kept: Any, rest: Any) -> Any:
    """Combine the two trees of `partition` into one."""
    return jax.tree.map(lambda a, b: b if a is None else a, kept, rest, is_leaf=lambda leaf: leaf is None)
