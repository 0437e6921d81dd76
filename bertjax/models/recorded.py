"""Return what each layer of an encoder computes: probabilities of attention, their scores, hidden states.

The encoder's own forward pass keeps them (layers.record), so they cannot differ from what a model computes. Programs
that do not ask for them compute none of them. Nothing is dropped out.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax.errors import ScopeCollectionNotFound, ScopeParamNotFoundError, ScopeParamShapeError

from bertjax.errors import InputError
from bertjax.inputs import check_positions, inputs_of, require_params
from bertjax.models.layers import RECORDED
from bertjax.types import Array, Batch, Params

_DECODER = "decoder"


def attention(encoder: Any, params: Params, batch: Batch, **options: Array) -> Array:
    """Return the attention probabilities of all layers, f32 [N, B, H, L, L]: of each query over the keys.

    params: of a model, or of its encoder alone. options: such as an encoder's `visible_BLM`. The rows of padding attend
    to padding alone, and those of a packed row to their own document. Of XLNet they are those of the content stream;
    for its query stream see `query_attention`. Raises InputError where the batch does not fit, and for an encoder of
    the user's own that records nothing.
    """
    _, recorded = _apply(encoder, params, batch, **options)
    return _named("attention", recorded, encoder)


def query_attention(encoder: Any, params: Params, batch: Batch, positions_BP: Array) -> Array:
    """Return the attention probabilities, f32 [N, B, H, P, L], of the rows that predict the tokens at `positions_BP`.

    Of XLNet they are the query stream, which sees all tokens but those at `positions_BP`; of DeBERTa the mask decoder,
    whose N is the number of times that it applies the last layer. Raises InputError for other encoders, which predict
    from the rows of `attention`, and as `attention` does.
    """
    check_positions(positions_BP, batch)
    _, recorded = _apply(encoder, params, batch, positions_BP, method="hidden")
    recorded = recorded.get(_DECODER, recorded)
    name = "attention" if _is_decoder(encoder) else "query_attention"
    return _named(name, recorded, encoder)


def attention_terms(encoder: Any, params: Params, batch: Batch) -> dict[str, Array]:
    """Return the terms of DeBERTa's scores by name, f32 [N, B, H, L, L] each.

    "c2c" is of content to content, "c2p" of content to position and "p2c" of position to content. Their sum, where a
    query may see the key, is the score whose softmax `attention` returns. Raises InputError for other encoders.
    """
    _, recorded = _apply(encoder, params, batch)
    names = ("c2c", *getattr(encoder, "terms", ()))
    return {name: _named(name, recorded, encoder) for name in names}


def hidden_states(encoder: Any, params: Params, batch: Batch, **options: Array) -> Array:
    """Return the inputs of all layers and the output of the encoder, [N + 1, B, L, D] in the compute dtype.

    The first is the output of the embeddings, the last the hidden states that `encode` returns. Raises InputError as
    `attention` does.
    """
    x_BLD, recorded = _apply(encoder, params, batch, **options)
    return jnp.concatenate([_named("before", recorded, encoder), x_BLD[None]])


def _apply(encoder: Any, params: Params, batch: Batch, *more: Array, **options: Any) -> tuple[Array, Any]:
    if not (hasattr(encoder, "V") and hasattr(encoder, "apply")):
        name = type(encoder).__name__
        raise InputError(f"encoder is of class {name}, not an encoder: give the field `encoder` of a model")
    inputs = inputs_of(encoder, batch)
    require_params(params)
    own = params.get("encoder", params)
    try:
        output, collections = encoder.apply({"params": own}, *inputs, *more, mutable=[RECORDED], **options)
    except (ScopeCollectionNotFound, ScopeParamNotFoundError, ScopeParamShapeError) as error:
        raise InputError(f"params are not those of this encoder: {error}") from error
    return output, collections.get(RECORDED, {})


def _is_decoder(encoder: Any) -> bool:
    return bool(getattr(encoder, "decoder", 0))


def _named(name: str, recorded: Any, encoder: Any) -> Array:
    """Find what the layers recorded under a name. Raises InputError where they did not."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(recorded):
        keys = [key.key for key in path]
        if keys[-1] == name and keys[0] != _DECODER:
            found: Array = leaf
            return found
    raise InputError(
        f"the layers of {type(encoder).__name__} record no {name}: only some encoders have it; one of your own calls "
        "bertjax.models.layers.record"
    )
