"""Write what a model computes as a program of its own, StableHLO, for rows of any number and length.

Parameters are constants of the program, so that one file is all that is needed. A program of JAX runs on every platform
it was written for, without bertjax:

    program = jax.export.deserialize(bytearray(open("model.jax", "rb").read()))
    output = program.call(tokens, mask, types)  # i32 [B, L] each
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

import jax
import jax.numpy as jnp
from jax import export

from bertjax.checkpoints.protocols import ForTask
from bertjax.checkpoints.trained import Model
from bertjax.errors import InputError
from bertjax.fields import check_kind
from bertjax.inputs import check_shapes, require
from bertjax.models.deberta import DeBERTa
from bertjax.models.layers import apply, attend
from bertjax.models.relative import LONGEST
from bertjax.models.sentence import sentence_head
from bertjax.models.xlnet import XLNet
from bertjax.storage.files import write
from bertjax.storage.paths import path_of
from bertjax.texts import several
from bertjax.types import Array, Batch

Output = Literal["hidden", "mlm_logits", "logits", "vectors"]
"""What a program returns: hidden states, logits of ids, logits of the task head, embeddings."""

PLATFORMS = ("cpu", "cuda", "tpu")

_NEEDED = "programs are written and read by flatbuffers: pip install 'bertjax[export]'"

_LARGEST = 1_900_000_000  # bytes of parameters: the format of a program holds less than 2 GiB


def exported(model: Model, output: Output = "hidden", *, platforms: Sequence[str] = PLATFORMS) -> export.Exported:
    """Return a model's program on tokens, mask and types, i32 [B, L] each, B and L symbolic.

    Rows may be as long as the model's positions; of XLNet and DeBERTa without a position table, up to LONGEST tokens.
    Raises InputError for a head that the model does not have, whose output is no array, or that reads more than one row
    at a time, and for parameters that do not fit into one file.
    """
    check_kind("model", model, Model, ", such as bertjax.load returns")
    function = _function(model, output)
    limit = longest(model)
    constraints = ["l >= 1"] if limit is None else ["l >= 1", f"l <= {limit}"]
    shape = export.symbolic_shape("b, l", constraints=constraints)
    rows = jax.ShapeDtypeStruct(shape, jnp.int32)
    return export.export(jax.jit(function), platforms=several(platforms, "platforms"))(rows, rows, rows)


def save_program(
    model: Model, file: str | Path, output: Output = "hidden", *, platforms: Sequence[str] = PLATFORMS
) -> None:
    """Write `exported(model, output)` to a file. Raises InputError as it does, and without the extra `export`."""
    try:
        content = exported(model, output, platforms=platforms).serialize()
    except ImportError as error:
        raise InputError(_NEEDED) from error
    write(path_of(file), bytes(content))


def load_program(file: str | Path) -> Callable[[Batch], Array]:
    """Read a program; return it as a function of a batch. Raises InputError for a file that holds none."""
    path = path_of(file)
    try:
        program = export.deserialize(bytearray(path.read_bytes()))
    except ImportError as error:
        raise InputError(_NEEDED) from error
    except Exception as error:  # the format raises nothing more exact
        raise InputError(f"{path} holds no program of jax.export that this version reads: {error}") from error

    def run(batch: Batch) -> Array:
        require(batch, "tokens", "mask")
        tokens, mask = jnp.asarray(batch["tokens"]), jnp.asarray(batch["mask"])
        types = jnp.asarray(batch["types"]) if batch.get("types") is not None else jnp.zeros_like(tokens)
        check_shapes(tokens, mask, types)
        return cast(Array, program.call(*(each.astype(jnp.int32) for each in (tokens, mask, types))))

    return run


def longest(model: Model) -> int | None:
    """Return the longest row of a model's program, None for any."""
    limit: int | None = model.encoder.max_length
    return LONGEST if limit is None and isinstance(model.encoder, XLNet | DeBERTa) else limit


def _function(model: Model, output: str) -> Callable[[Array, Array, Array], Array]:
    """Return what a model computes as a function of tokens, mask and types, with plain attention."""
    if output not in get_args(Output):
        raise InputError(f"output={output!r} is none of {', '.join(get_args(Output))}")
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    if size > _LARGEST:
        raise InputError(
            f"the parameters are {size / 1e9:.1f} GB, a program holds {_LARGEST / 1e9:.1f}: use save_hf for this model"
        )
    compute = _COMPUTE[output](_with_plain_attention(model))

    def function(tokens_BL: Array, mask_BL: Array, types_BL: Array) -> Array:
        return compute({"tokens": tokens_BL, "mask": mask_BL, "types": types_BL})

    shapes = jax.eval_shape(
        function, *[jax.ShapeDtypeStruct((2, min(model.encoder.max_length or 8, 8)), jnp.int32)] * 3
    )
    if not isinstance(shapes, jax.ShapeDtypeStruct):
        raise InputError(f"{output!r} of this model is a {type(shapes).__name__}, no array: export its hidden states")
    return function


def _with_plain_attention(model: Model) -> Model:
    """Replace the kernel of an encoder, which is of one platform."""
    objective: Any = model.objective
    fields = getattr(objective, "__dataclass_fields__", {})
    if getattr(objective.encoder, "attend", attend) is attend or "encoder" not in fields:
        return model
    plain = dataclasses.replace(objective, encoder=objective.encoder.clone(attend=attend))
    return dataclasses.replace(model, objective=plain)


def _hidden(model: Model) -> Callable[[Batch], Array]:
    return lambda batch: model.objective.encode(model.params, batch)


def _mlm_logits(model: Model) -> Callable[[Batch], Array]:
    objective = model.language_model
    return lambda batch: objective.language_logits(model.params, batch)


def _logits(model: Model) -> Callable[[Batch], Array]:
    objective = model.objective
    if not isinstance(objective, ForTask):
        raise InputError(f"a {type(objective).__name__} has no task head: export 'mlm_logits' or 'hidden'")
    if getattr(objective, "task", "") == "choice":
        raise InputError("the options of a choice are rows of their own: export 'hidden' of this model")
    return lambda batch: objective.task_logits(model.params, batch)


def _vectors(model: Model) -> Callable[[Batch], Array]:
    head, params = sentence_head(model.objective, model.params)
    return lambda batch: apply(head, params, model.objective.encode(model.params, batch), batch["mask"], 0)


_COMPUTE = {"hidden": _hidden, "mlm_logits": _mlm_logits, "logits": _logits, "vectors": _vectors}
