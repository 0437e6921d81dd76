"""Distillation: train a student to match the predictions of a larger, frozen teacher on the same masked text.

    loss = soft_weight · T² · mean over real tokens of KL(teacher ‖ student), both softened by the temperature T
         + mlm_weight · masked LM loss of the student
         + cosine_weight · mean over real tokens of 1 − cos(last hidden state of the student, of the teacher)

Hinton et al. 2015; Sanh et al. 2019 (DistilBERT; huggingface/transformers, examples of distillation, distiller.py). The
T² keeps the size of the gradient whatever T is. Means are over tokens that are not padding, never over the vocabulary.
The teacher runs without dropout, and no gradient passes through it. Where we deviate: no 1e-12 beside the norms of the
cosine's states, which no encoder's last norm leaves at 0.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from bertjax.data.tokenizer import Vocabulary
from bertjax.fields import check_fields
from bertjax.inputs import check_step, require_params
from bertjax.masking import Corruption, Masking, mask_tokens
from bertjax.models.initialise import one_program
from bertjax.models.language import LanguageEncoder, hidden, word_table
from bertjax.models.layers import apply, states_at
from bertjax.objectives.losses import histogram, real_tokens, scaled, scores, weighted_mean
from bertjax.objectives.mlm import MaskedLM
from bertjax.rules import STACKED, Rules, match, name_of
from bertjax.types import Array, Batch, Key, Metrics, Params, Predictions, total

FROZEN_TEACHER: Rules = ((r"^teacher/", 0.0),)
"""The rules that must come first in `Optimizer.rates`, so that only the student is trained."""

OUTSIDE_LAYERS: Rules = ((r"^encoder/layers?/", False), (r".*", True))


class LayeredEncoder(LanguageEncoder, Protocol):
    """Protocol for an encoder that can be student or teacher: a LanguageEncoder with a number of layers."""

    N: int


@dataclass(frozen=True)
class Distillation:
    """Train `student` to match `teacher`, whose parameters are loaded by an experiment's `init`.

    layers: for each layer of the student the one of the teacher that it is initialised from; empty for none.
    inherited: rules on names of the teacher's parameters outside layers, True for those that the student is initialised
    from; a student of another width takes none. corrupt: see masking.Corruption.
    masking: the same for both. temperature: the logits of both are divided by it. soft_weight, mlm_weight,
    cosine_weight: of the terms of the loss.
    Raises ValueError for vocabularies that differ, hidden states of different widths where their cosine counts or
    layers are named, layers that do not exist, a temperature of 0, weights below 0, and as MaskedLM.
    """

    student: LayeredEncoder
    teacher: LayeredEncoder
    masking: Masking
    layers: tuple[int, ...] = ()
    inherited: Rules = OUTSIDE_LAYERS
    temperature: float = 2.0
    soft_weight: float = 5.0
    mlm_weight: float = 2.0
    cosine_weight: float = 1.0
    corrupt: Corruption = mask_tokens

    def __post_init__(self) -> None:
        check_fields(self)
        student, teacher = self.student, self.teacher
        if student.V != teacher.V:
            raise ValueError(
                f"the student has a vocabulary of V={student.V} ids, the teacher of V={teacher.V}: their "
                "distributions over ids are compared, so use the teacher's for both"
            )
        if self.cosine_weight and student.D != teacher.D:
            raise ValueError(
                f"the student is D={student.D} wide, the teacher D={teacher.D}: hidden states of different widths have "
                "no cosine, so make them equal or set cosine_weight=0"
            )
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature} must be above 0")
        if min(self.soft_weight, self.mlm_weight, self.cosine_weight) < 0:
            raise ValueError(
                f"soft_weight={self.soft_weight}, mlm_weight={self.mlm_weight} and cosine_weight={self.cosine_weight} "
                "must be 0 or more"
            )
        if self.layers:
            self._check_layers()
        self.masking.check_vocabulary(self.student.V)

    def _check_layers(self) -> None:
        if len(self.layers) != self.student.N:
            raise ValueError(
                f"layers={self.layers} names {len(self.layers)} of the teacher's layers, the student has "
                f"N={self.student.N}: name one for each"
            )
        if self.student.D != self.teacher.D:
            raise ValueError(
                f"layers={self.layers}: the student is D={self.student.D} wide and cannot begin as layers of a teacher "
                f"D={self.teacher.D} wide, so leave `layers` empty"
            )
        if not all(0 <= layer < self.teacher.N for layer in self.layers):
            raise ValueError(f"layers={self.layers}: the teacher's are 0 to {self.teacher.N - 1}, choose among them")
        for name, encoder in (("student", self.student), ("teacher", self.teacher)):
            if getattr(encoder, "shared", False):
                raise ValueError(f"layers={self.layers}: all layers of the {name} are one, so leave `layers` empty")

    @property
    def student_objective(self) -> MaskedLM:
        """The objective of the student without a teacher."""
        return MaskedLM(self.student, self.masking, corrupt=self.corrupt)

    @property
    def teacher_objective(self) -> MaskedLM:
        """The objective that serves the teacher alone."""
        return MaskedLM(self.teacher, self.masking, corrupt=self.corrupt)

    @property
    def encoder(self) -> LayeredEncoder:
        """The encoder that is kept for other tasks: the student."""
        return self.student

    @property
    def frozen(self) -> Rules:
        """The rules that must come first in an optimiser's rates: see Experiment."""
        return FROZEN_TEACHER

    @one_program
    def init(self, rng: Key, batch: Batch) -> Params:
        """Initialise {student: {encoder, head: {mlm}}, teacher: {encoder, head: {mlm}}}, both at random."""
        student_key, teacher_key = jax.random.split(rng)
        return {
            "student": self.student_objective.init(student_key, batch),
            "teacher": self.teacher_objective.init(teacher_key, batch),
        }

    def remap_params(self, found: Params) -> Params:
        """Map the parameters of the model in `init` to the teacher's, and to those that the student inherits.

        Those of a distillation are returned unchanged. Raises ValueError for a model without a masked-LM head.
        """
        if {"student", "teacher"} <= set(found):
            return found
        if "encoder" not in found or "mlm" not in found.get("head", {}):
            raise ValueError(
                f"a teacher needs encoder and head/mlm, this model has {', '.join(found)}: give a masked language "
                "model, or the part of it that is one"
            )
        teacher = {"encoder": found["encoder"], "head": {"mlm": found["head"]["mlm"]}}
        return {"student": self._inherited(teacher) if self.student.D == self.teacher.D else {}, "teacher": teacher}

    def _inherited(self, teacher: Params) -> Params:
        """Return the parameters that the student inherits from the teacher, as a nested dict."""
        student: dict[str, Any] = {}
        leaves = jax.tree_util.tree_leaves_with_path(teacher)
        stacked, inherited = (jax.tree.leaves(match(rules, teacher)) for rules in (STACKED, self.inherited))
        for (path, leaf), is_stacked, is_inherited in zip(leaves, stacked, inherited, strict=True):
            if is_stacked and self.layers:
                leaf = leaf[jnp.array(self._places(len(leaf)), int)]
            elif is_stacked or not is_inherited:
                continue
            *parents, last = name_of(path).split("/")
            part = student
            for parent in parents:
                part = part.setdefault(parent, {})
            part[last] = leaf
        return student

    def _places(self, rows: int) -> list[int]:
        """Return the rows of a stacked parameter of the teacher that belong to `layers`.

        Where the first layer has no such parameter (ModernBERT's attention norm) there is one row less. Raises
        ValueError where the first layer of the student would then get one, or another layer none.
        """
        if rows == self.teacher.N:
            return list(self.layers)
        if [layer for layer in self.layers if layer == 0] != [self.layers[0]]:
            raise ValueError(
                f"layers={self.layers}: the teacher's layer 0 has no norm before its attention, the others have, so "
                "begin with layer 0 and name it only there"
            )
        return [layer - 1 for layer in self.layers[1:]]

    def part(self, name: str, params: Params) -> tuple[MaskedLM, Params]:
        """Return the student or the teacher alone, as (objective, params)."""
        return {"student": self.student_objective, "teacher": self.teacher_objective}[name], params[name]

    def encode(self, params: Params, batch: Batch) -> Array:
        """Return hidden states x_BLD of the student."""
        require_params(params, "student")
        return self.student_objective.encode(params["student"], batch)

    def language_logits(self, params: Params, batch: Batch, positions_BP: Array | None = None) -> Array:
        """Return the student's logits, as MaskedLM.language_logits."""
        require_params(params, "student")
        return self.student_objective.language_logits(params["student"], batch, positions_BP)

    def special_tokens(self, v: Vocabulary) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Return the special tokens before and after a text, as (id, segment)."""
        return self.student_objective.special_tokens(v)

    def expected_targets(self, rows: int, length: int, real_tokens: float) -> dict[str, float]:
        """See ExpectsTargets."""
        return self.student_objective.expected_targets(rows, length, real_tokens)

    def loss(self, params: Params, batch: Batch, rng: Key, *, train: bool) -> tuple[Array, Metrics]:
        """Return the loss and its metrics; without `train` also the histogram of the targets, `targets/mlm`.

        The terms `loss/…` carry their weights, and the soft one its T²; `divergence/soft`, `cross_entropy/mlm` and
        `distance/cosine` do not.
        """
        metrics, _ = self.outputs(params, batch, rng, train=train)
        return total(metrics), metrics

    def outputs(
        self, params: Params, batch: Batch, rng: Key, *, train: bool, delta: Array | None = None
    ) -> tuple[Metrics, Predictions]:
        """Return the metrics of `loss`, and the student's logits at every real token, unsoftened, under `mlm`.

        delta: a perturbation of the student's embeddings, see `perturbed_embeddings`; not of the teacher's.
        """
        check_step(params, ("student", "teacher"), batch, rng, self.student, self.teacher)
        mask_key, dropout_key = jax.random.split(rng)
        masked = self.corrupt(mask_key, batch, self.masking)
        x_BLD, logits_BLV = _states_and_logits(
            self.student_objective, params["student"], batch, masked.tokens_BL,
            delta=delta, train=train, rngs={"dropout": dropout_key},
        )  # fmt: skip
        taught = _states_and_logits(
            self.teacher_objective, jax.lax.stop_gradient(params["teacher"]), batch, masked.tokens_BL
        )
        real_BL = (batch["mask"] > 0).astype(jnp.float32)
        metrics = scores("mlm", states_at(logits_BLV, masked.positions_BP), masked.targets_BP, masked.weights_BP)
        metrics["cross_entropy/mlm"] = metrics["loss/mlm"]
        metrics["loss/mlm"] = scaled(metrics["cross_entropy/mlm"], self.mlm_weight)
        soft = weighted_mean(divergence(taught[1], logits_BLV, self.temperature), real_BL)
        metrics["divergence/soft"] = soft
        metrics["loss/soft"] = scaled(soft, self.soft_weight * self.temperature**2)
        if self.cosine_weight:
            metrics["distance/cosine"] = weighted_mean(1 - cosine(x_BLD, taught[0]), real_BL)
            metrics["loss/cosine"] = scaled(metrics["distance/cosine"], self.cosine_weight)
        if not train:
            metrics["targets/mlm"] = histogram(self.student.V, masked.targets_BP, masked.weights_BP)
        metrics["tokens/real"] = real_tokens(batch["mask"])
        return metrics, {"mlm": (logits_BLV, real_BL)}


def _states_and_logits(
    objective: MaskedLM, params: Params, batch: Batch, tokens_BL: Array, **options: Any
) -> tuple[Array, Array]:
    """Return the last hidden states x_BLD and the logits_BLV at all positions."""
    x_BLD, head_BLD = hidden(objective.encoder, params, batch, tokens_BL, None, **options)
    return x_BLD, apply(objective.head, params["head"]["mlm"], head_BLD, word_table(params["encoder"]))


def divergence(teacher_BLV: Array, student_BLV: Array, temperature: float) -> Array:
    """Return KL(teacher ‖ student) of the softened distributions at each position, in nats: f32 [B, L]."""
    teacher_BLV, student_BLV = (
        jax.nn.log_softmax(logits_BLV.astype(jnp.float32) / temperature, axis=-1)
        for logits_BLV in (teacher_BLV, student_BLV)
    )
    return (jnp.exp(teacher_BLV) * (teacher_BLV - student_BLV)).sum(-1)


def cosine(a_BLD: Array, b_BLD: Array) -> Array:
    """Return the cosine of two vectors at each position: f32 [B, L]; 0 where either is 0."""
    a_BLD, b_BLD = a_BLD.astype(jnp.float32), b_BLD.astype(jnp.float32)
    squares_BL = (a_BLD**2).sum(-1) * (b_BLD**2).sum(-1)
    return (a_BLD * b_BLD).sum(-1) * jax.lax.rsqrt(jnp.where(squares_BL == 0, 1, squares_BL))
