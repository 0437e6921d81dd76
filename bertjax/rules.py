"""Give every parameter a value by its name: ordered (regex, value) lists, first match wins.

Parameter names are an API: `encoder/layers/attention/query/kernel`. A parameter that no rule covers is an error, so
that a renamed module cannot silently change what is decayed, frozen or sharded.
"""

import re
from collections.abc import Callable
from typing import Any

import jax

Rules = tuple[tuple[str, Any], ...]

NOT_NORM_NOR_BIAS: Rules = ((r"(^|/)(scale|bias)$", False), (r".*", True))
"""True for kernels and tables: BERT's set of decayed parameters, and what LAMB adapts."""

EVERYTHING: Rules = ((r".*", True),)

STACKED: Rules = ((r"(^|/)layers/", True), (r".*", False))
"""True for parameters with a leading axis of layers: each slice of it is a tensor of its own."""


def name_of(path: tuple[Any, ...]) -> str:
    """Join the keys of a tree path with slashes."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def match(rules: Rules, tree: Any) -> Any:
    """Replace every leaf by the value of the first rule whose regex is found in its name.

    Raises ValueError naming the leaves that no rule covers.
    """
    missed = []

    def value(path: tuple[Any, ...], _: Any) -> Any:
        for pattern, found in rules:
            if re.search(pattern, name_of(path)):
                return found
        missed.append(name_of(path))
        return None

    values = jax.tree_util.tree_map_with_path(value, tree)
    if missed:
        raise ValueError(f"no rule covers {', '.join(missed[:5])}: add one, or a last rule ('.*', …)")
    return values


def split(chosen: Rules, tree: Any) -> tuple[Any, Any]:
    """Split a tree in two by rules that are True or False: each part has None where the other has the leaf.

    None is no leaf to JAX: nothing is computed, kept or saved there. Raises ValueError as `match`.
    """
    choice = match(chosen, tree)
    kept = jax.tree.map(lambda leaf, keep: leaf if keep else None, tree, choice)
    return kept, jax.tree.map(lambda leaf, keep: None if keep else leaf, tree, choice)


def joined(kept: Any, rest: Any) -> Any:
    """Put together what `split` took apart."""
    return jax.tree.map(lambda a, b: b if a is None else a, kept, rest, is_leaf=lambda leaf: leaf is None)


def matcher(rules: Rules) -> Callable[[Any], Any]:
    """Curry `match` for optax, which asks for masks as functions of the parameters."""
    return lambda tree: match(rules, tree)
