"""Load a trained model, and compute its hidden states and logits."""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from bertjax.checkpoints import checkpoint
from bertjax.checkpoints.newest import read_newest
from bertjax.checkpoints.protocols import ForTask, InParts, LanguageModel, RestrictsAttention, Trained, Wrapping, served
from bertjax.checkpoints.rows_of_texts import batch_of
from bertjax.config import own_code
from bertjax.data.templates import Templates, one_segment, templates_for
from bertjax.data.tokenizer import Tokenizer
from bertjax.errors import InputError
from bertjax.flops import batch_shapes, row_shapes
from bertjax.huggingface.convert import Found, read_encoder, read_folder, without_heads
from bertjax.huggingface.families import find_family
from bertjax.huggingface.folder import MODULES, is_huggingface
from bertjax.huggingface.sentence_transformers import has_modules, read_modules, transformer_folder
from bertjax.huggingface.tensors import some
from bertjax.inputs import check_positions, inputs_of
from bertjax.models import recorded
from bertjax.models.published import Published, one_by_one
from bertjax.models.sentence import SENTENCE
from bertjax.serialization.closed_set import ENCODERS, ROWS, TRAINED, Names
from bertjax.serialization.description import NO_CODE, Code, from_json, own_names, to_json
from bertjax.storage.paths import path_of
from bertjax.terminal import message
from bertjax.types import Array, Batch, Params


@dataclass(frozen=True)
class Model:
    """A trained model. config: the experiment or the folder that it was loaded from, as JSON types."""

    objective: Trained
    params: Params
    tokenizer: Tokenizer | None  # None if its Hugging Face folder has none
    config: dict[str, Any]

    @property
    def encoder(self) -> Any:
        """The encoder that was trained."""
        return self.objective.encoder

    def batch(self, texts: str | Sequence[str | tuple[str, str]], *, length: int | None = None) -> Batch:
        """Return tokens, mask and types i32 [B, L] of texts or of pairs of texts, with the model's special tokens.

        A text may have masks, spelled as the tokenizer's mask piece. Rows are padded to `length`, by default to the
        longest one. Raises InputError for rows longer than this or than the model's positions.
        """
        return batch_of(texts, self.text, self.templates, self.encoder.max_length, length)

    def encode(self, batch: Batch) -> Array:
        """Return hidden states [B, L, D] of tokens and mask, and types where given.

        Raises InputError, as all methods that read a batch, for arrays that do not fit the model.
        """
        return self._encode(self.params, self._checked(batch))

    def mlm_logits(self, batch: Batch) -> Array:
        """Return language-model logits [B, L, V]. Raises InputError if the model has no such head."""
        return self._language_logits(self.params, self._checked(batch))

    def logits(self, batch: Batch) -> Array:
        """Return the logits of the task head: see Published.task_logits. Raises InputError if there is none."""
        return self._task_logits(self.params, self._checked(batch))

    def mask_probabilities(self, batch: Batch, positions_BP: Array) -> Array:
        """Return the probability of every piece at the given positions of each row: float32 [B, P, V]."""
        check_positions(positions_BP, batch)
        logits_BPV = self._language_logits(self.params, self._checked(batch), positions_BP)
        return jax.nn.softmax(logits_BPV.astype(jnp.float32), axis=-1)

    def attention(self, batch: Batch) -> Array:
        """Return the attention probabilities of all layers, f32 [N, B, H, L, L]: see models.recorded.attention."""
        return self._recorded(recorded.attention, batch)

    def query_attention(self, batch: Batch, positions_BP: Array) -> Array:
        """Return those of the rows that predict tokens, of XLNet and DeBERTa: see models.recorded.query_attention."""
        return self._recorded(recorded.query_attention, batch, positions_BP)

    def attention_terms(self, batch: Batch) -> dict[str, Array]:
        """Return the terms of DeBERTa's scores, f32 [N, B, H, L, L] each: see models.recorded.attention_terms."""
        return self._recorded(recorded.attention_terms, batch)

    def hidden_states(self, batch: Batch) -> Array:
        """Return the inputs of all layers and the output, [N + 1, B, L, D]: see models.recorded.hidden_states."""
        return self._recorded(recorded.hidden_states, batch)

    def _recorded(self, function: Callable[..., Any], batch: Batch, *more: Array) -> Any:
        encoder, params = self.trained_encoder
        for positions_BP in more:
            check_positions(positions_BP, batch)
        batch = self._checked(batch)
        options = self.objective.seen(batch) if isinstance(self.objective, RestrictsAttention) else {}
        return _jitted(function, encoder, params, batch, *more, **options)

    @property
    def trained_encoder(self) -> tuple[Any, Params]:
        """The encoder that was trained and its parameters, of a model in several parts too."""
        objective, params = self.objective, self.params
        if isinstance(objective, InParts):
            parts = [objective.part(name, params) for name in params]
            objective, params = next(part for part in parts if part[0].encoder is objective.encoder)
        return objective.encoder, params[ENCODER]

    def _checked(self, batch: Batch) -> Batch:
        """Check the values of a batch, which a compiled program cannot."""
        inputs_of(self.encoder, one_by_one(batch))
        return dict(batch)

    @property
    def cls_last(self) -> bool:
        """Whether texts end with the classification token."""
        return isinstance(self.objective, LanguageModel) and not self.objective.special_tokens(self.text.vocabulary)[0]

    @property
    def templates(self) -> Templates:
        """The templates of texts, with segment 0 throughout if the model has a single segment."""
        templates = templates_for(self.text, cls_last=self.cls_last)
        return one_segment(templates) if getattr(self.encoder, "types", 2) == 1 else templates

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
        """The tokenizer. Raises InputError if there is none."""
        if self.tokenizer is None:
            raise InputError("this model came without tokenizer files: put its vocabulary into its folder")
        return self.tokenizer

    @property
    def language_model(self) -> LanguageModel:
        """The objective if it has a language-model head. Raises InputError if not."""
        if not isinstance(self.objective, LanguageModel):
            raise InputError(f"a {type(self.objective).__name__} has no language-model head: use the whole model")
        return self.objective

    @cached_property
    def _language_logits(self) -> Any:
        return jax.jit(self.language_model.language_logits)


@partial(jax.jit, static_argnums=(0, 1))
def _jitted(
    function: Callable[..., Any], encoder: Any, params: Params, batch: Batch, *more: Array, **options: Array
) -> Any:
    return function(encoder, params, batch, *more, **options)


def load(path: str | Path, experiment: str | Path = "") -> Model:
    """Load a model from the work folder of a run (its newest checkpoint), one checkpoint, or a Hugging Face folder.

    Of an objective with two models `run:generator` and `run:discriminator` are one alone; `path:encoder` is the encoder
    of any model, without heads and mask decoder, whatever other heads a Hugging Face folder has. Works on any device,
    whatever it was trained on. experiment: the file of a run with classes or functions of your own; it is executed, and
    a model never names it by itself. Raises InputError if there is no model, or it is damaged.
    """
    return load_with(path, own_code(experiment) if experiment else NO_CODE)


def load_with(path: str | Path, code: Code) -> Model:
    """Load a model as `load` does, with classes and functions of the user's own."""
    folder, part = part_of(path)
    if is_huggingface(folder):
        if part not in ("", ENCODER):
            raise InputError(f"the model in {folder} has no part {part!r}, only {ENCODER!r}")
        found = (
            _with_sentence_head(folder, read_folder(transformer_folder(folder))) if not part else _encoder_of(folder)
        )
        config = {"objective": to_json(found.model), "huggingface": found.notes}
        model = Model(found.model, found.params, found.tokenizer, config)
        return encoder_alone(model) if part else model
    return read_newest(folder, partial(_read, folder, part, code), _warn)[0]


def _warn(text: str) -> None:
    """Warn of what was read in a folder of others: Python prints the text of a warning as it is."""
    warnings.warn(message(text), stacklevel=4)


def _read(folder: Path, part: str, code: Code, step: Path) -> Model:
    """Read the model, or a part of it, in one checkpoint of a folder."""
    info = checkpoint.read_info(step)
    if part == ENCODER:
        unknown = own_names(info["experiment"]["objective"], code)
        return _encoder_of_run(step, info, code) if unknown else encoder_alone(_read(folder, "", code, step))
    objective = from_json(info["experiment"]["objective"], TRAINED, "objective", code)
    like = on_one_device(param_shapes(objective, info["experiment"], step, code))
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


def _encoder_of_run(step: Path, info: dict[str, Any], code: Code) -> Model:
    """Load the encoder of a run whose objective is the user's own, without its code: the field `encoder` describes it.

    Raises InputError where there is no such field, and where the encoder is the user's own too.
    """
    described = info["experiment"]["objective"].get("encoder")
    encoder = from_json(described, Names(types=ENCODERS), "objective.encoder", code)
    model = Published(encoder)
    like = on_one_device(param_shapes(model, {}, step, code))
    params = checkpoint.restore(step, "params", like, info, whole=False)
    config = info["experiment"] | {"objective": to_json(model)}
    return encoder_alone(Model(model, params, checkpoint.saved_tokenizer(step, info), config))


def _encoder_of(folder: Path) -> Found:
    """Read the encoder of a folder, without the modules of sentence-transformers, which are reported."""
    found = read_encoder(transformer_folder(folder))
    left = [f"{MODULES} is not applied to the encoder alone"] if has_modules(folder) else []
    return found._replace(notes=found.notes | {"reported": [*found.notes["reported"], *left]})


def _with_sentence_head(folder: Path, found: Found) -> Found:
    """Add the head that the modules of sentence-transformers describe.

    Where they cannot be followed, the rest of the model is of use: the reason is kept for what embeds texts.
    """
    if not has_modules(folder):
        return found
    try:
        modules = read_modules(folder, found.model.encoder)
    except InputError as error:
        reason = str(error).replace(f"{folder}/", "")  # what is exported names no place
        notes = {"no_embedding": reason, "reported": [*found.notes["reported"], f"embedding is refused: {reason}"]}
        return found._replace(notes=found.notes | notes)
    heads = (*found.model.named_heads, (SENTENCE, modules.head))
    own = {SENTENCE: jax.tree.map(jnp.asarray, modules.params)}
    params = {**found.params, "head": {**found.params.get("head", {}), **own}}
    notes = {"similarity": modules.similarity, "reported": [*found.notes["reported"], *modules.reported]}
    return Found(dataclasses.replace(found.model, named_heads=heads), params, found.tokenizer, found.notes | notes)


def without_sentence_head(model: Model) -> Model:
    """Return a model without the modules of sentence-transformers."""
    if not isinstance(model.objective, Published) or SENTENCE not in model.objective.heads:
        return model
    heads = tuple((name, module) for name, module in model.objective.named_heads if name != SENTENCE)
    objective = dataclasses.replace(model.objective, named_heads=heads)
    own = {name: params for name, params in model.params.get("head", {}).items() if name != SENTENCE}
    params = {name: each for name, each in model.params.items() if name != "head"} | ({"head": own} if own else {})
    return dataclasses.replace(
        model, objective=objective, params=params, config=model.config | {"objective": to_json(objective)}
    )


def encoder_alone(model: Model) -> Model:
    """Return the encoder that was trained; of several models the one that is meant for other tasks."""
    encoder, own = without_heads(*model.trained_encoder)
    family = find_family(encoder)
    alone = Published(encoder, cls_last=family is not None and family.cls_last)
    config = model.config | {"objective": to_json(alone)}
    if "huggingface" in config:
        notes = {key: value for key, value in config["huggingface"].items() if key != "no_embedding"}
        source = {key: value for key, value in notes["config"].items() if key != "architectures"}
        config["huggingface"] = notes | {"config": source, "prefixed": False}
    return Model(alone, {ENCODER: own}, model.tokenizer, config)


def on_one_device(shapes: Any) -> Any:
    """Return the shapes of arrays as they are on the first device of this process."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)


def param_shapes(objective: Any, described: dict[str, Any], step: Path, code: Code = NO_CODE) -> Any:
    """Return the shapes of the parameters. Raises InputError where the description contradicts itself."""
    batch = _shapes(described, code)
    try:
        return jax.eval_shape(objective.init, jax.random.key(0), batch)
    except Exception as error:  # whatever a layer raises for sizes that do not fit another's
        problem = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"the model that {step} describes cannot be built: {problem[0][:200]}") from error


def _shapes(described: dict[str, Any], code: Code) -> Any:
    """Return the shapes of the smallest batch with the arrays that the model was trained on.

    Parameters do not depend on the number of rows and of positions. A model from a Hugging Face folder has no rows.
    """
    if not described.get("phases"):
        return batch_shapes(1, 1, ("types",))
    rows = from_json(described["phases"][0]["rows"], ROWS, "phases.0.rows", code)
    return {
        name: jax.ShapeDtypeStruct((1,) * len(shape.shape), shape.dtype) for name, shape in row_shapes(rows, 1).items()
    }


def part_of(path: str | Path) -> tuple[Path, str]:
    """Split `folder:part`, unless the whole is the name of an existing folder."""
    whole, (folder, colon, part) = path_of(path), str(path).rpartition(":")
    if not colon or part.startswith("//") or whole.exists() or not (home := path_of(folder)).exists():
        return whole, ""
    return home, part


def load_notes(source: str | Path, model: Model) -> list[str]:
    """Return notes on how a Hugging Face folder was read, and the first tensors that were ignored, with reasons."""
    folder, _ = part_of(source)
    if not is_huggingface(folder):
        return []
    notes = model.config["huggingface"]
    reported = [f"{note}: {folder}" for note in notes["reported"]]
    ignored = [f"{name} ({reason})" for name, reason in notes["ignored"].items()]
    return reported + ([f"ignored {some(ignored)} of {folder}"] if ignored else [])
