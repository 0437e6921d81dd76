"""Begin with a trained model: its parameters by their names."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import jax

from bertjax.checkpoints.trained import ENCODER, InParts, ReinitsTopLayers, RemapsWarmStart, load, load_notes, wrapped
from bertjax.data.tokenizer import Tokenizer, same_tokenizer
from bertjax.description import field_names, to_json
from bertjax.errors import InputError
from bertjax.rules import STACKED, name_of
from bertjax.types import Array, Objective, Params


class Start(NamedTuple):
    """Parameters to begin with, by name, and what is to be said of them besides."""

    params: Mapping[str, Array]
    note: str


def warm_start(source: str, objective: Objective, like: Params, tokenizer: Tokenizer) -> Start:
    """Load what the model in `source` has under the name of a parameter of `objective`, whose shapes `like` gives.

    An objective may name what it finds in its own way (`Beginning`). A model that came without tokenizer is noted:
    nothing but the number of its ids can be compared; and so is what was ignored in a Hugging Face folder. Raises
    InputError where a shape, the tokenizer or the sharing of embeddings differs, or nothing has the same name.
    """
    model = load(source)
    if model.tokenizer is not None and not same_tokenizer(model.tokenizer, tokenizer):
        raise InputError(f"init={source} has another tokenizer than the corpus: build the corpus with the model's")
    *_, inner = wrapped(objective)
    # What a name means depends on it: tables, or what is added to the other model's.
    theirs, ours = (to_json(x).get("sharing") for x in (model.objective, inner))
    if theirs and ours and theirs != ours:
        raise InputError(f"init={source} shares embeddings in another way than this experiment: use the same way")
    shapes = {name_of(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(like)}
    params, renewed = model.params, 0
    for each in wrapped(objective):
        renewed = each.renewed if isinstance(each, ReinitsTopLayers) else renewed
        if not isinstance(each, RemapsWarmStart):
            continue
        try:
            params = each.begin_with(params)
        except ValueError as error:
            raise InputError(f"init={source}: {error}") from error
    found = {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    found = _one_segment(found, shapes)
    taken = {name: leaf for name, leaf in found.items() if name in shapes}
    lower = {name: (shape[0] - renewed, *shape[1:]) if _is_stack(name) else shape for name, shape in shapes.items()}
    _check_whole_head(source, found, shapes)
    different = {name: (leaf.shape, shapes[name]) for name, leaf in taken.items() if leaf.shape != lower[name]}
    if different:
        name, (given, wanted) = next(iter(different.items()))
        fix = _other_vocabulary(objective, different, tokenizer) or "make the model as large as that one"
        raise InputError(f"init={source} has {name} of shape {given}, this experiment {wanted}: {fix}")
    if not taken:
        parts = [f"{source}:{part}" for part in model.params] if isinstance(model.objective, InParts) else []
        hint = f": try one of its parts, {', '.join(parts)}" if parts else ""
        raise InputError(f"init={source} has no parameter that this experiment has, such as {next(iter(shapes))}{hint}")
    note = "" if model.tokenizer is not None else "; it came without tokenizer, so its ids are taken to be the corpus's"
    note += f"; of the layers the top {renewed} anew" if renewed else ""
    note += "".join(f"; {sentence}" for sentence in load_notes(source, model))
    return Start(taken, note)


def _check_whole_head(source: str, found: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse to leave out a part of a language-model head that the rest of it was trained with."""
    for name in found.keys() - shapes.keys():
        head, _, _ = name.partition("/decoder")
        if re.search(r"(^|/)head/(mlm|plm)/decoder", name) and any(own.startswith(f"{head}/") for own in shapes):
            raise InputError(
                f"init={source} guesses words by a table of its own, {name}, this experiment by the word table: set "
                "tied_head=false of its encoder (in its file head=untied_transformed_head of a Modern), or begin with "
                f"the encoder alone, {source}:{ENCODER}"
            )
        if name.endswith("encoder/decoder_positions/table") and any(own.endswith("head/mlm/bias") for own in shapes):
            raise InputError(
                f"init={source} guesses words after its mask decoder, this experiment has none: set decoder=2 of its "
                f"encoder, or begin with the encoder alone, {source}:{ENCODER}"
            )


def _is_stack(name: str) -> bool:
    return bool(next(stacked for pattern, stacked in STACKED if re.search(pattern, name)))


def _other_vocabulary(
    objective: Objective, different: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]], tokenizer: Tokenizer
) -> str:
    """Say which V makes shapes alike, as (given, wanted), that differ in the size of the vocabulary alone, if so.

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


def _one_segment(found: dict[str, Array], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """Add the first segment's vector to all positions where the new encoder has no segments: the sum is the same.

    Published RoBERTa has one segment, ours none.
    """
    if _SEGMENTS not in found or _SEGMENTS in shapes or not {_POSITIONS} <= found.keys() & shapes.keys():
        return found
    return found | {_POSITIONS: found[_POSITIONS] + found[_SEGMENTS][:1]}
