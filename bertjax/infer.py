"""Load a trained model and use it: hidden states, language-model logits, filled masks."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from bertjax import checkpoint
from bertjax.config import field_names, from_json, to_json
from bertjax.data.tokenizer import Tokenizer, Vocabulary, same_tokenizer
from bertjax.errors import InputError
from bertjax.flops import batch_shapes, row_shapes
from bertjax.huggingface.convert import family_for, read_folder, some, without_decoder, write_model
from bertjax.huggingface.folder import is_huggingface, read_config
from bertjax.models.encoder import Encoder
from bertjax.models.xlnet import XLNet
from bertjax.optim import STACKED
from bertjax.published import Published
from bertjax.rules import name_of
from bertjax.types import Array, Batch, Objective, Params


class Trained(Protocol):
    """What every model offers once it is trained."""

    @property
    def encoder(self) -> Any:
        """The encoder that was trained."""
        ...

    def encode(self, params: Params, batch: Batch) -> Array:
        """Return hidden states [B, L, D]."""
        ...


@runtime_checkable
class LanguageModel(Trained, Protocol):
    """What a model offers that can guess words."""

    def language_logits(self, params: Params, batch: Batch, positions_BP: Array | None = None) -> Array:
        """Return logits [B, P, V] at positions of masks, without them at all positions [B, L, V]."""
        ...

    def around(self, v: Vocabulary) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Name the specials before and after a text, as (id, segment)."""
        ...


@runtime_checkable
class InParts(Protocol):
    """What a model offers that is made of several."""

    def part(self, name: str, params: Params) -> tuple[Trained, Params]:
        """Take one of them alone."""
        ...


@runtime_checkable
class ForTask(Protocol):
    """What a model offers that was made for a task."""

    def task_logits(self, params: Params, batch: Batch) -> Array:
        """Return what its task head says of a batch."""
        ...


@runtime_checkable
class Wrapping(Protocol):
    """What an objective offers that trains another one's parameters in its own way (SiFT)."""

    @property
    def objective(self) -> Trained:
        """The objective that serves what was trained."""
        ...


@runtime_checkable
class Beginning(Protocol):
    """What an objective offers that begins with another model otherwise than by equal names."""

    def begin_with(self, found: Params) -> Params:
        """Turn the parameters of that model into those to begin with, named as its own."""
        ...


@runtime_checkable
class Renewing(Protocol):
    """What an objective offers that begins with the lower layers of another model alone."""

    @property
    def renewed(self) -> int:
        """How many of the top layers are made anew."""
        ...


@dataclass(frozen=True)
class Model:
    """A trained model. config: the experiment or the folder that it comes from, as JSON types."""

    objective: Trained
    params: Params
    tokenizer: Tokenizer | None  # none where the folder of others that it comes from has none
    config: dict[str, Any]

    @property
    def encoder(self) -> Any:
        """The encoder that was trained."""
        return self.objective.encoder

    def encode(self, batch: Batch) -> Array:
        """Return hidden states [B, L, D] of tokens and mask, and types where given."""
        return self._encode(self.params, dict(batch))

    def mlm_logits(self, batch: Batch) -> Array:
        """Return language-model logits [B, L, V]. Raises InputError where the model has no such head."""
        return self._language_logits(self.params, dict(batch))

    def logits(self, batch: Batch) -> Array:
        """Return the logits of the task head: see Published.task_logits. Raises InputError where there is none."""
        return self._task_logits(self.params, dict(batch))

    def mask_probabilities(self, batch: Batch, positions_BP: Array) -> Array:
        """Return the probability of every piece at the given positions of each row: float32 [B, P, V]."""
        logits_BPV = self._language_logits(self.params, dict(batch), positions_BP)
        return jax.nn.softmax(logits_BPV.astype(jnp.float32), axis=-1)

    @cached_property
    def _encode(self) -> Any:
        return jax.jit(self.objective.encode)

    @cached_property
    def _task_logits(self) -> Any:
        if not isinstance(self.objective, ForTask):
            raise InputError(f"a {type(self.objective).__name__} has no task head: its logits are mlm_logits")
        return jax.jit(self.objective.task_logits)

    @property
    def text(self) -> Tokenizer:
        """The tokenizer. Raises InputError where there is none."""
        if self.tokenizer is None:
            raise InputError("this model came without tokenizer files: put its vocabulary into its folder")
        return self.tokenizer

    @property
    def language_model(self) -> LanguageModel:
        """The objective, where it can guess words. Raises InputError where it cannot."""
        if not isinstance(self.objective, LanguageModel):
            raise InputError(f"a {type(self.objective).__name__} has no language-model head: use the whole model")
        return self.objective

    @cached_property
    def _language_logits(self) -> Any:
        return jax.jit(self.language_model.language_logits)


def load(path: str | Path) -> Model:
    """Load a model from the work folder of a run (its newest checkpoint), one checkpoint, or a Hugging Face folder.

    Of an objective with two models `run:generator` and `run:discriminator` are one alone; `path:encoder` is the encoder
    of any model, without heads and mask decoder. Works on any device, whatever it was trained on. Raises InputError
    where there is none, or it is damaged.
    """
    folder, part = _part_of(path)
    if part == ENCODER:
        return _encoder_alone(load(folder))
    if is_huggingface(folder):
        if part:
            raise InputError(f"the model in {folder} has no part {part!r}, only {ENCODER!r}")
        found = read_folder(folder)
        config = {"objective": to_json(found.model), "huggingface": found.notes}
        return Model(found.model, found.params, found.tokenizer, config)
    step = checkpoint.latest_step(folder)
    info = checkpoint.read_info(step)
    objective = from_json(info["experiment"]["objective"])
    params = jax.eval_shape(objective.init, jax.random.key(0), _shapes(info["experiment"]))
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), params)
    params = checkpoint.restore(step, "params", like, info)
    config = info["experiment"]
    if isinstance(objective, Wrapping):
        objective = served(objective)
        config = config | {"objective": to_json(objective)}
    if part and part not in params:
        raise InputError(f"the model in {folder} has no part {part!r}: its parts are {', '.join(params)}, {ENCODER}")
    if part and not isinstance(objective, InParts):
        raise InputError(f"the model in {folder} cannot be taken apart: give {folder} without :{part}, or :{ENCODER}")
    if part:
        objective, params = objective.part(part, params)
        config = config | {"objective": to_json(objective), "part_of": config["objective"]["type"]}
    return Model(objective, params, checkpoint.saved_tokenizer(step, info), config)


ENCODER = "encoder"  # the part that every model has


def _encoder_alone(model: Model) -> Model:
    """Take the encoder that was trained; of several models the one that is kept for other tasks."""
    objective, params = model.objective, model.params
    if isinstance(objective, InParts):
        parts = [objective.part(name, params) for name in params]
        objective, params = next(part for part in parts if part[0].encoder is objective.encoder)
    encoder, own = without_decoder(objective.encoder, params[ENCODER])
    alone = Published(encoder, cls_last=isinstance(encoder, XLNet))
    config = model.config | {"objective": to_json(alone)}
    if "huggingface" in config:
        notes = config["huggingface"]
        source = {key: value for key, value in notes["config"].items() if key != "architectures"}
        config["huggingface"] = notes | {"config": source, "prefixed": False}
    return Model(alone, {ENCODER: own}, model.tokenizer, config)


def _shapes(described: dict[str, Any]) -> Any:
    """Find the shapes of a batch; what came from a Hugging Face folder has no rows of its own, so the smallest."""
    if "phases" not in described:
        return batch_shapes(1, 1, ("types",))
    rows = from_json(described["phases"][0]["rows"])
    return row_shapes(rows, 1)


def convert(source: str | Path, folder: str | Path, *, to: Literal["bertjax", "huggingface"] = "bertjax") -> list[str]:
    """Write a model, or one part of it, to a new folder of its own: no optimiser, nothing of the other part.

    Returns sentences to tell the user: what was ignored in a Hugging Face folder, and what `save_hf` leaves out. Raises
    InputError where the folder holds something, and as `load` and `save_hf`.
    """
    model = load(source)
    said = _said(source, model)
    if to == "huggingface":
        return said + save_hf(model, folder)
    folder = _new_folder(folder)
    checkpoint.export(folder, model.params, experiment=model.config, tokenizer=model.tokenizer)
    return said


def _said(source: str | Path, model: Model) -> list[str]:
    """Say what was decided in reading a Hugging Face folder, and the first tensors that were ignored, with reasons."""
    folder, _ = _part_of(source)
    if not is_huggingface(folder):
        return []
    notes = model.config["huggingface"]
    said = [f"{sentence}: {folder}" for sentence in notes["said"]]
    ignored = [f"{name} ({reason})" for name, reason in notes["ignored"].items()]
    return said + ([f"ignored {some(ignored)} of {folder}"] if ignored else [])


def save_hf(model: Model, folder: str | Path, architecture: str = "") -> list[str]:
    """Write a model to a new folder that `AutoModel…from_pretrained` of transformers loads, with its tokenizer.

    With no missing and no unexpected key, but for a DeBERTa's head for replaced tokens, or for its mask decoder's head:
    no class of transformers has these. They are written by the names of the released weights (`lm_predictions`,
    `mask_predictions`), so that the folder is the whole model again for `load`; transformers' classes read the encoder
    and list the rest as unexpected. A folder without such keys is that of the encoder: `save_hf(load("run:encoder"),
    folder)`. Returns a sentence for each such head.

    architecture: a `model_type` of transformers, where several compute the same; by default that which the model came
    from, or was made after. Raises InputError where the folder holds something, or no class of transformers computes
    what this model does.
    """
    architecture = architecture or architecture_of(model)
    made = _new_folder(folder)
    notes = model.config.get("huggingface", {})
    return write_model(model.objective, model.params, model.tokenizer, notes, made, architecture)


def family_of(path: str | Path) -> str:
    """Name the family of transformers that the model in a folder belongs to, without reading its weights."""
    folder, part = _part_of(path)
    if is_huggingface(folder):
        return str(read_config(folder).get("model_type", ""))
    described = checkpoint.read_info(checkpoint.latest_step(folder))["experiment"]
    objective = from_json(described["objective"])
    if isinstance(objective, Wrapping):
        objective = served(objective)
    encoder = getattr(objective, part, None) or objective.encoder
    model = Model(objective, {}, None, described)
    return family_for(encoder, getattr(objective, "heads", {}), architecture_of(model)).model_type


def architecture_of(model: Model) -> str:
    """Name the family of transformers that a model was made after, where its encoder does not tell; else nothing."""
    stated: str = model.config.get("architecture", "")
    whole = model.config.get("part_of", "")
    if stated or type(model.encoder) is not Encoder:  # the others have families of their own
        return stated
    if whole.endswith(".ReplacedTokenDetection"):
        return "electra"
    return "distilbert" if whole.endswith(".Distillation") and model.encoder.types == 0 else ""


def _new_folder(folder: str | Path) -> Path:
    """See that a folder is new or empty; an empty one is removed, because writers make their own."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not empty: choose a new folder")
    if folder.exists():
        folder.rmdir()
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder


def _part_of(path: str | Path) -> tuple[Path, str]:
    """Split `folder:part`; a folder whose own name has a colon is a folder."""
    folder, colon, part = str(path).rpartition(":")
    return (Path(folder), part) if colon and not Path(path).exists() and Path(folder).exists() else (Path(path), "")


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
    *_, inner = _layers_of(objective)
    # What a name means depends on it: tables, or what is added to the other model's.
    theirs, ours = (to_json(x).get("sharing") for x in (model.objective, inner))
    if theirs and ours and theirs != ours:
        raise InputError(f"init={source} shares embeddings in another way than this experiment: use the same way")
    shapes = {name_of(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(like)}
    params, renewed = model.params, 0
    for each in _layers_of(objective):
        renewed = each.renewed if isinstance(each, Renewing) else renewed
        if not isinstance(each, Beginning):
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
    note += "".join(f"; {sentence}" for sentence in _said(source, model))
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


def _layers_of(objective: Any) -> Iterator[Any]:
    """Yield an objective and what it wraps."""
    yield objective
    while isinstance(objective, Wrapping):
        objective = objective.objective
        yield objective


def served(objective: Wrapping) -> Trained:
    """Find what serves what an objective trained."""
    *_, innermost = _layers_of(objective)
    return innermost


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


class Guess(NamedTuple):
    """A piece to fill a mask with, its text, and its probability."""

    piece: str
    text: str
    probability: float


class Filled(NamedTuple):
    """A text, the guesses for each of its masks, and the text with the best of them."""

    text: str
    masks: list[list[Guess]]
    best: str


def fill_mask(model: Model, texts: Sequence[str], *, top: int = 5, batch_size: int = 32) -> Iterator[Filled]:
    """Fill the masks of each text, written as the tokenizer spells its mask piece ("[MASK]", "<mask>").

    Yields in order. Raises InputError for a text without a mask, or longer than the model's position table.
    """
    vocabulary = model.text.vocabulary
    before, after = model.language_model.around(vocabulary)
    encoded = [_with_masks(model, text) for text in texts]
    for start in range(0, len(texts), batch_size):
        rows = encoded[start : start + batch_size]
        length = -(-max(map(len, rows)) // 32) * 32  # few lengths, few compilations
        length = min(model.encoder.max_length or length, length)
        tokens = np.full((len(rows), length), vocabulary.pad, np.int32)
        mask, types = np.zeros_like(tokens), np.zeros_like(tokens)
        places = [[place for place, index in enumerate(ids) if index == vocabulary.mask] for ids in rows]
        positions = np.zeros((len(rows), 1 << (max(map(len, places)) - 1).bit_length()), np.int32)
        for row, ids in enumerate(rows):
            tokens[row, : len(ids)], mask[row, : len(ids)] = ids, 1
            types[row, : len(before)] = [segment for _, segment in before]
            types[row, len(ids) - len(after) : len(ids)] = [segment for _, segment in after]
            positions[row] = places[row][0]  # in unused slots too: all that is listed counts as hidden
            positions[row, : len(places[row])] = places[row]
        batch = {"tokens": jnp.asarray(tokens), "mask": jnp.asarray(mask), "types": jnp.asarray(types)}
        probabilities = np.asarray(model.mask_probabilities(batch, jnp.asarray(positions)))
        for row, ids in enumerate(rows):
            masks = [_guesses(model.text, probabilities[row, slot], top) for slot in range(len(places[row]))]
            best = list(ids)
            for slot, place in enumerate(places[row]):
                best[place] = int(probabilities[row, slot].argmax())
            yield Filled(texts[start + row], masks, model.text.decode(best[len(before) : len(best) - len(after)]))


_WORD = "中"  # stands for a mask while a text is tokenised: no vocabulary joins it to its neighbours


def _with_masks(model: Model, text: str) -> list[int]:
    """Encode a text with specials at its ends, and a mask for the pieces of each word that it stands for.

    So what is around a mask is tokenised as in training: the space before it belongs to the hidden word where the
    vocabulary's pieces carry their spaces, and what follows continues the text.
    """
    tokenizer = model.tokenizer
    assert tokenizer is not None  # fill_mask asked for it
    vocabulary = tokenizer.vocabulary
    mask_piece = tokenizer.piece(vocabulary.mask)
    parts = text.split(mask_piece)
    if len(parts) == 1:
        raise InputError(f"no {mask_piece} in {text!r}: write one where a word is to be guessed")
    places = [end - 1 for end in accumulate(len(part) + 1 for part in parts[:-1])]
    encoding = tokenizer.encode(_WORD.join(parts))
    before, after = model.language_model.around(vocabulary)
    ids, seen = [index for index, _ in before], set()
    for index, (begin, end) in zip(encoding.ids.tolist(), encoding.offsets.tolist(), strict=True):
        hidden = [place for place in places if begin <= place < end]
        if not hidden:
            ids.append(index)
        for place in hidden:
            if place in seen:  # a word of several pieces
                continue
            seen.add(place)
            if begin == place and ids and tokenizer.piece(ids[-1]) in ("Ġ", "▁"):
                ids.pop()
            ids.append(vocabulary.mask)
    ids += [index for index, _ in after]
    if len(ids) > (model.encoder.max_length or len(ids)):
        raise InputError(f"{len(ids)} tokens exceed the {model.encoder.max_length} of the model: {text[:60]!r}…")
    return ids


def _guesses(tokenizer: Tokenizer, probabilities_V: np.ndarray, top: int) -> list[Guess]:
    best = np.argsort(-probabilities_V, kind="stable")[:top]
    return [Guess(tokenizer.piece(i), tokenizer.decode([i]).strip(), float(probabilities_V[i])) for i in best]
