"""Initialise an experiment with the parameters of a trained model, by their names."""

import hashlib
import re
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

from bertjax.checkpoints.described import other_fields
from bertjax.checkpoints.protocols import InParts, ReinitsTopLayers, RemapsWarmStart, wrapped
from bertjax.checkpoints.trained import ENCODER, Model, load_notes, load_with
from bertjax.checkpoints.warm_optimizer import Kept
from bertjax.data.tokenizer import Tokenizer, same_tokenizer
from bertjax.errors import InputError
from bertjax.models.sentence import SENTENCE
from bertjax.rules import STACKED, VOCABULARY, name_of
from bertjax.serialization.description import NO_CODE, Code, field_names, to_json
from bertjax.types import Array, Objective, Params
from bertjax.wording import counted

Shapes = Mapping[str, tuple[int, ...]]


class Start(NamedTuple):
    """Initial parameters by name, and a note to report.

    model: the digest of these parameters; of a resumed run the one that it began with, if any. optimizer: arrays of the
    state of the optimiser, where it was asked for.
    """

    params: Mapping[str, Array]
    note: str = ""
    model: str = ""
    optimizer: Kept = Kept({})


def warm_start(source: str, objective: Objective, like: Params, tokenizer: Tokenizer, code: Code = NO_CODE) -> Start:
    """Load the parameters of the model in `source` that `objective`, whose shapes `like` has, has under the same names.

    An objective may map names itself (`RemapsWarmStart`). code: the user's own, which that model may be built of. The
    note reports a model without tokenizer, of which only the number of ids can be compared, and the tensors that were
    ignored in a Hugging Face folder. Raises InputError if a shape, the tokenizer or the sharing of embeddings differs,
    or no parameter has the same name.
    """
    shapes = {name_of(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(like)}
    *_, reinitialised = 0, *(each.renewed for each in wrapped(objective) if isinstance(each, ReinitsTopLayers))
    model = _collect(source, objective, tokenizer, code)
    found = _remap(source, model.params, objective, shapes)
    taken = {name: leaf for name, leaf in found.items() if name in shapes}
    _check_whole_head(source, found, shapes)
    _check_shapes(source, objective, taken, shapes, reinitialised, tokenizer)
    if not taken:
        parts = [f"{source}:{part}" for part in model.params] if isinstance(model.objective, InParts) else []
        hint = f": try one of its parts, {', '.join(parts)}" if parts else ""
        raise InputError(f"init={source} has no parameter that this experiment has, such as {next(iter(shapes))}{hint}")
    return Start(taken, _explain(source, model, objective, reinitialised), _digest(taken))


def _digest(params: Mapping[str, Array]) -> str:
    digest = hashlib.sha256()
    for name, leaf in sorted(params.items()):
        digest.update(name.encode() + np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def _collect(source: str, objective: Objective, tokenizer: Tokenizer, code: Code) -> Model:
    """Load a model with the same tokenizer and the same sharing of embeddings. Raises InputError for another one."""
    model = load_with(source, code)
    if model.tokenizer is not None and not same_tokenizer(model.tokenizer, tokenizer):
        raise InputError(f"init={source} has another tokenizer than the corpus: build the corpus with the model's")
    *_, inner = wrapped(objective)
    # With another sharing the same name means another parameter: a table, or the Δ added to the other model's table.
    theirs, ours = (to_json(x).get("sharing") for x in (model.objective, inner))
    if theirs and ours and theirs != ours:
        raise InputError(f"init={source} shares embeddings in another way than this experiment: use the same way")
    return model


def _remap(source: str, params: Params, objective: Objective, shapes: Shapes) -> dict[str, Array]:
    """Map the parameters of a model to names of `objective`."""
    for each in wrapped(objective):
        if not isinstance(each, RemapsWarmStart):
            continue
        try:
            params = each.remap_params(params)
        except ValueError as error:
            raise InputError(f"init={source}: {error}") from error
    found = {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    return _one_segment(found, shapes)


def _check_shapes(
    source: str,
    objective: Objective,
    taken: Mapping[str, Array],
    shapes: Shapes,
    reinitialised: int,
    tokenizer: Tokenizer,
) -> None:
    """Raise InputError for a parameter of another shape; stacks lack the layers that are freshly initialised."""
    lower = {
        name: (shape[0] - reinitialised, *shape[1:]) if _is_stack(name) else shape for name, shape in shapes.items()
    }
    different = {name: (leaf.shape, shapes[name]) for name, leaf in taken.items() if leaf.shape != lower[name]}
    if different:
        name, (given, wanted) = next(iter(different.items()))
        fix = _other_vocabulary(objective, different, tokenizer) or (
            "make the model as large as that one, or leave its sizes out: experiments of bertjax take them from init"
        )
        raise InputError(f"init={source} has {name} of shape {given}, this experiment {wanted}: {fix}")


def _explain(source: str, model: Model, objective: Objective, reinitialised: int) -> str:
    """Return the note of `Start`."""
    *_, inner = wrapped(objective)
    both = (getattr(inner, ENCODER, None), getattr(model.objective, ENCODER, None))
    different = other_fields(*both) if None not in both else []
    note = "" if model.tokenizer is not None else "; it came without tokenizer, so its ids are taken to be the corpus's"
    note += f"; freshly initialised: the top {counted(reinitialised, 'layers')}" if reinitialised else ""
    if SENTENCE in getattr(model.objective, "heads", {}) and SENTENCE not in getattr(inner, "heads", {}):
        note += f"; its head/{SENTENCE} is left out: embeddings of the new model are the mean of all tokens"
    note += f"; it computes otherwise: {', '.join(different)}" if different else ""
    return note + "".join(f"; {each}" for each in load_notes(source, model))


def _check_whole_head(source: str, found: Mapping[str, Array], shapes: Shapes) -> None:
    """Raise InputError if a part of a language-model head would be left out, with which the rest was trained."""
    for name in found.keys() - shapes.keys():
        head, _, _ = name.partition("/decoder")
        if re.search(VOCABULARY, name) and "/decoder" in name and any(own.startswith(f"{head}/") for own in shapes):
            raise InputError(
                f"init={source} has an untied language head, {name}, this experiment a tied one: set "
                "tied_head=false of its encoder (in its file head=untied_transformed_head of a Modern), or start "
                f"from the encoder alone, init={source}:{ENCODER}"
            )
        if name.endswith("encoder/decoder_positions/table") and any(re.search(VOCABULARY, own) for own in shapes):
            raise InputError(
                f"init={source} has a language head after a mask decoder, this experiment has none: set decoder=2 of "
                f"its encoder, or start from the encoder alone, init={source}:{ENCODER}"
            )


def _is_stack(name: str) -> bool:
    return bool(next(stacked for pattern, stacked in STACKED if re.search(pattern, name)))


def _other_vocabulary(
    objective: Objective, different: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]], tokenizer: Tokenizer
) -> str:
    """Return the remedy where shapes, as (given, wanted), differ only in the size of the vocabulary, else "".

    Tables are often padded to more rows than there are ids.
    """
    encoders = {name: getattr(getattr(objective, name), "V", None) for name in field_names(objective)}
    encoders = {name: V for name, V in encoders.items() if V is not None}
    if any(len(given) != len(wanted) for given, wanted in different.values()):
        return ""
    pairs = {pair for shapes in different.values() for pair in zip(*shapes, strict=True) if pair[0] != pair[1]}
    (given, wanted), *others = pairs
    if others or given < tokenizer.vocabulary.size or {wanted} != set(encoders.values()):
        return ""
    fixes = " ".join(f"objective.{name}.V={given}" for name in encoders)
    return f"only the rows of the vocabulary differ, which may be padded, so set {fixes}"


_SEGMENTS, _POSITIONS = "encoder/embeddings/type/table", "encoder/embeddings/position/table"


def _one_segment(found: dict[str, Array], shapes: Shapes) -> dict[str, Array]:
    """Add the first segment's vector to all positions where the new encoder has no segments: the sum is the same.

    Published RoBERTa has one segment, ours none.
    """
    if _SEGMENTS not in found or _SEGMENTS in shapes or not {_POSITIONS} <= found.keys() & shapes.keys():
        return found
    return found | {_POSITIONS: found[_POSITIONS] + found[_SEGMENTS][:1]}
