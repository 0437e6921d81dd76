"""List the classes and functions that a description may name, the fields that may hold them, and the largest sizes.

A checkpoint is data: what it names is looked up here, and nothing else is imported or called. A field whose annotation
is a dataclass, or a union of some, may hold these; one whose annotation says less (a protocol, a callable, Any) may
hold what HELD lists for it. Every class and function that an experiment of this package can hold is listed; a new one
is one more name, and tests/security/test_descriptions.py finds the field that was forgotten.
"""

from typing import NamedTuple


class Names(NamedTuple):
    """Names of classes whose instances a field may hold, and of functions (or classes, to be called) that it may."""

    types: frozenset[str] = frozenset()
    functions: frozenset[str] = frozenset()


def _of(module: str, *names: str) -> frozenset[str]:
    return frozenset(f"bertjax.{module}.{name}" for name in names)


def _types(*groups: frozenset[str]) -> Names:
    return Names(types=frozenset().union(*groups))


def _functions(*groups: frozenset[str]) -> Names:
    return Names(functions=frozenset().union(*groups))


# Parts of models -----------------------------------------------------------------------------------------------------

ENCODERS = (
    _of("models.deberta", "DeBERTa")
    | _of("models.encoder", "Encoder")
    | _of("models.modern", "Modern")
    | _of("models.xlnet", "XLNet")
)
_SHARING_ENCODERS = _of("models.deberta", "DeBERTa") | _of("models.encoder", "Encoder")
_HEADS = (
    _of("models.heads", "MaskedLMHead", "TiedHead", "UntiedHead", "ReplacedHead", "ReplacedInContextHead", "Pooler",
        "PairHead", "TokenHead", "TransformedHead")
    | _of("models.sentence", "SentenceEmbedding")
    | _of("models.span_heads", "BeamSpanHead")
)  # fmt: skip
_TRANSFORMS = _of("models.sentence", "Projection", "UnitLength") | _of("models.layers", "Norm")
_ACTIVATIONS = _functions(
    _of("models.layers", "gelu", "gelu_tanh", "relu", "tanh", "silu", "gelu_10", "quick_gelu", "mish"),
    _of("models.sentence", "identity", "sigmoid"),
)
_ATTENTIONS = _functions(_of("models.layers", "attend"), _of("models.kernels", "fused_attend"))
_NORMS = _functions(_of("models.layers", "layer_norm", "rms_norm"))
_POOLINGS = _functions(
    _of("models.sentence", "cls_token", "last_token", "max_tokens", "mean_tokens", "mean_sqrt_length", "weighted_mean")
)
_RESIDUALS = _functions(_of("models.modern", "pre_norm", "post_norm"))
_LANGUAGE_HEADS = _functions(
    _of("models.modern", "transformed_head", "untied_transformed_head", "tied_head", "untied_head")
)
_SPAN_HEADS = _functions(_of("models.span_heads", "electra_span_head", "xlnet_span_head"))

# Objectives ----------------------------------------------------------------------------------------------------------

_CORRUPTIONS = _functions(_of("masking", "mask_tokens", "mask_with_replacement"))
_UNITS = Names(_of("masking", "Groups"), _of("masking", "tokens", "words"))
_COUNTS = _functions(_of("masking", "rounded", "stochastically_rounded"))
_DISCRIMINATOR_HEADS = _functions(_of("objectives.rtd", "electra_discriminator_head", "deberta_discriminator_head"))
_SHARINGS = _types(_of("objectives.rtd", "SharedEmbeddings", "SeparateEmbeddings", "DisentangledEmbeddings"))
_SCORES = Names(
    _of("objectives.supervised", "BeamSpans", "WeightedClasses"),
    _of("objectives.supervised", "classes", "labels", "numbers", "tags", "options", "spans"),
)
_NOISES = _types(_of("noise", "ExactCount", "RandomTime"))
_NOISE_SCHEDULES = _of("noise", "Cosine", "Linear", "LogLinear")
_WEIGHTS_OF_TIMES = _functions(_of("noise", "bound", "uniform"))
_SHARES = _functions(_of("objectives.diffusion", "per_row", "per_token"))
_WRAPPED = (
    _of("objectives.diffusion", "MaskedDiffusion")
    | _of("objectives.distil", "Distillation")
    | _of("objectives.mlm", "MaskedLM")
    | _of("objectives.plm", "PermutationLM")
    | _of("objectives.rtd", "ReplacedTokenDetection")
    | _of("objectives.supervised", "Supervised")
)
OBJECTIVES = _types(_WRAPPED, _of("objectives.contrastive", "Contrastive"), _of("objectives.sift", "SiFT"))
TRAINED = _types(OBJECTIVES.types, _of("models.published", "Published"), _of("objectives.rtd", "Discriminator"))
"""The models of checkpoints: objectives, and the parts of them that are exported alone."""

# Runs ----------------------------------------------------------------------------------------------------------------

COUNTERS = _types(_of("counters", "Continued", "Restarted"))
ROWS = _types(
    _of("data.pairs", "NextSentencePairs", "SentenceOrderPairs"),
    _of("data.rows", "DocumentSentences", "FullSentences", "PackedDocuments"),
    _of("data.segments", "Segments"),
    _of("data.windows", "Windows"),
    _of("tasks.instructions", "Instructions"),
    _of("tasks.rows", "TaskRows"),
    _of("tasks.text_pairs", "TextPairs"),
)
_SCHEDULES = _of("optim.schedules", "Schedule", "BertLinear", "ElectraLinear")
_SHAPES = Names(_of("optim.schedules", "Power"), _of("optim.schedules", "linear", "cosine", "one_minus_sqrt"))
_OPTAX_ADAM = "optax._src.transform.scale_by_adam"  # its module, by which `to_json` names it
_MOMENTS = _functions(
    _of("optim.transforms", "scale_by_stable_adam", "scale_by_uncorrected_adam"), frozenset({_OPTAX_ADAM})
)

# Tasks ---------------------------------------------------------------------------------------------------------------

_FORMATS = _types(
    _of("tasks.choices", "Arc", "Copa", "JsonChoices", "Options", "Race"),
    _of("tasks.formats", "Conll", "JsonLines", "JsonQuestions", "JsonWords", "LabelledFolders", "Paraphrases", "Squad",
        "Table"),
)  # fmt: skip
_RECORDS = _types(_of("tasks.tfds", "Alternatives", "Articles", "Columns", "Lettered", "Questions", "Tagged"))
_METRICS = _functions(
    _of("tasks.metrics", "accuracy", "f1", "matthews", "pearson", "spearman", "micro_f1", "macro_f1",
        "ranking_average_precision")
)  # fmt: skip

_POOLS = _functions(_of("tasks.pooling", "mean", "maximum"))

HELD: dict[str, Names] = {
    "bertjax.config.Experiment.counters": COUNTERS,
    "bertjax.config.Experiment.objective": OBJECTIVES,
    "bertjax.config.Phase.rows": ROWS,
    "bertjax.finetuning.recipe.FineTuning.head": _SPAN_HEADS,
    "bertjax.finetuning.recipe.FineTuning.pool": _POOLS,
    "bertjax.finetuning.recipe.Recipe.moments": _MOMENTS,
    "bertjax.finetuning.recipe.Recipe.schedule": _functions(_SCHEDULES),
    "bertjax.masking.Masking.count": _COUNTS,
    "bertjax.masking.Masking.unit": _UNITS,
    "bertjax.models.deberta.DeBERTa.activation": _ACTIVATIONS,
    "bertjax.models.deberta.DeBERTa.convolution_activation": _ACTIVATIONS,
    "bertjax.models.encoder.Encoder.activation": _ACTIVATIONS,
    "bertjax.models.encoder.Encoder.attend": _ATTENTIONS,
    "bertjax.models.heads.MaskedLMHead.activation": _ACTIVATIONS,
    "bertjax.models.heads.PairHead.activation": _ACTIVATIONS,
    "bertjax.models.heads.Pooler.activation": _ACTIVATIONS,
    "bertjax.models.heads.ReplacedHead.activation": _ACTIVATIONS,
    "bertjax.models.heads.ReplacedInContextHead.activation": _ACTIVATIONS,
    "bertjax.models.heads.TransformedHead.activation": _ACTIVATIONS,
    "bertjax.models.layers.Norm.normalise": _NORMS,
    "bertjax.models.modern.Modern.activation": _ACTIVATIONS,
    "bertjax.models.modern.Modern.head": _LANGUAGE_HEADS,
    "bertjax.models.modern.Modern.residual": _RESIDUALS,
    "bertjax.models.modern.Norms.normalise": _NORMS,
    "bertjax.models.published.Published.encoder": _types(ENCODERS),
    "bertjax.models.published.Published.named_heads": _types(_HEADS),
    "bertjax.models.sentence.Projection.activation": _ACTIVATIONS,
    "bertjax.models.sentence.SentenceEmbedding.pooling": _POOLINGS,
    "bertjax.models.sentence.SentenceEmbedding.transforms": _types(_TRANSFORMS),
    "bertjax.models.span_heads.BeamSpanHead.activation": _ACTIVATIONS,
    "bertjax.models.xlnet.XLNet.activation": _ACTIVATIONS,
    "bertjax.noise.RandomTime.weigh": _WEIGHTS_OF_TIMES,
    "bertjax.objectives.diffusion.MaskedDiffusion.encoder": _types(ENCODERS),
    "bertjax.objectives.diffusion.MaskedDiffusion.noise": _NOISES,
    "bertjax.objectives.diffusion.MaskedDiffusion.share": _SHARES,
    "bertjax.objectives.distil.Distillation.corrupt": _CORRUPTIONS,
    "bertjax.objectives.distil.Distillation.student": _types(ENCODERS),
    "bertjax.objectives.distil.Distillation.teacher": _types(ENCODERS),
    "bertjax.objectives.mlm.MaskedLM.corrupt": _CORRUPTIONS,
    "bertjax.objectives.mlm.MaskedLM.encoder": _types(ENCODERS),
    "bertjax.objectives.rtd.Discriminator.discriminator_head": _DISCRIMINATOR_HEADS,
    "bertjax.objectives.rtd.Discriminator.encoder": _types(_SHARING_ENCODERS),
    "bertjax.objectives.rtd.ReplacedTokenDetection.corrupt": _CORRUPTIONS,
    "bertjax.objectives.rtd.ReplacedTokenDetection.discriminator": _types(_SHARING_ENCODERS),
    "bertjax.objectives.rtd.ReplacedTokenDetection.discriminator_head": _DISCRIMINATOR_HEADS,
    "bertjax.objectives.rtd.ReplacedTokenDetection.generator": _types(_SHARING_ENCODERS),
    "bertjax.objectives.rtd.ReplacedTokenDetection.sharing": _SHARINGS,
    "bertjax.objectives.sift.SiFT.objective": _types(_WRAPPED),
    "bertjax.objectives.supervised.Supervised.score": _SCORES,
    "bertjax.optim.optimizer.Optimizer.moments": _MOMENTS,
    "bertjax.optim.schedules.Schedule.shape": _SHAPES,
    "bertjax.tasks.rows.TaskRows.pool": _POOLS,
    "bertjax.tasks.task.Part.format": _FORMATS,
    "bertjax.tasks.task.Task.metrics": _METRICS,
    "bertjax.tasks.task.Task.records": _RECORDS,
}
"""By class and field: the names that it may hold, where its annotation does not say it."""

ALL = Names(
    types=frozenset().union(
        *(names.types for names in HELD.values()),
        TRAINED.types,
        _SCHEDULES,
        _NOISE_SCHEDULES,
        _of("amendments", "Amendment"),
        _of("config", "Experiment", "Phase", "Run"),
        _of("data.templates", "Templates"),
        _of("finetuning.recipe", "FineTuning", "Recipe"),
        _of("masking", "Masking"),
        _of("models.layers", "GlorotUniform", "Normal", "TruncatedNormal", "Uniform"),
        _of("models.modern", "Biases", "Norms"),
        _of("models.positions", "Alibi", "Rotary", "ScaledSinusoids"),
        _of("optim.optimizer", "Optimizer"),
        _of("optim.schedules", "Restarting"),
        _of("optim.skipping", "Spikes"),
        _of("permutation", "Permutation"),
        _of("sharding.mesh", "MeshShape"),
        _of("tasks.tags", "Scheme"),
        _of("tasks.task", "Part", "Task"),
    ),
    functions=frozenset().union(*(names.functions for names in HELD.values())),
)
"""The closed set."""

FOUND_AT = {_OPTAX_ADAM: "optax.scale_by_adam"}
"""Where names are found that are no public place."""

# Sizes ---------------------------------------------------------------------------------------------------------------

LARGEST = {
    # Sizes of models, which decide how long tracing takes and how large arrays are.
    "C": 2**17, "D": 2**15, "E": 2**15, "F": 2**17, "H": 2**10, "N": 512, "V": 2**23,
    "inputs": 2**18, "outputs": 2**18, "width": 2**18,
    "buckets": 2**13, "convolution": 255, "decoder": 8, "distances": 2**13, "ends": 64, "global_every": 512,
    "groups": 512, "inner": 64, "renewed": 512, "starts": 64, "types": 2**10,
    # Positions in a row, and numbers of them.
    "block": 2**15, "context": 2**10, "ending": 2**15, "length": 2**15, "longest": 2**15, "max_length": 2**31,
    "max_predictions": 2**15, "memory": 2**15, "parts": 2**15, "question": 2**15, "reach": 2**15, "reuse": 2**15,
    "shortest": 2**15, "stride": 2**15, "targets": 2**15, "window": 2**15, "options": 256,
    # Ids.
    "boundary": 2**23, "functional": 2**23, "mask_id": 2**23, "random_ids": 2**23, "specials": 2**23,
    "unnumbered": 2**23,
    # Numbers that cost nothing.
    "checkpoint_every": 2**53, "decay": 2**53, "evaluate_batches": 2**53, "evaluate_every": 2**53, "extend": 2**53,
    "first_seed": 2**53, "keep": 2**53, "keep_every": 2**53, "log_every": 2**53, "profile": 2**53, "seed": 2**64,
    "steps": 2**53, "tail": 2**53, "total": 2**53, "warmup": 2**53, "batch_size": 2**32,
}  # fmt: skip
"""By field: the largest absolute value of an integer."""

LARGEST_OTHER = 2**20
"""Of the fields that LARGEST does not name."""

LONGEST = {
    "labels": 2**16, "spelled": 2**16, "layers": 512, "local": 512, "prompts": 2**10, "rates": 2**11,
    "specials": 256, "functional": 256, "types": 2**10, "columns": 2**10, "endings": 256, "weights": 2**16,
}  # fmt: skip
"""By field: the most elements of a tuple."""

LONGEST_OTHER = 64
"""Of the fields that LONGEST does not name."""

LONGEST_TEXT = 2**14
"""Characters of a text, such as a path or a prompt."""

ONE_OF = {
    "dtype": ("float32", "bfloat16"),
    "named_heads": ("mlm", "plm", "pair", "rtd", "classify", "choice", "tags", "span", "beams", "sentence"),
    "remat": ("none", "dots", "full"),
    "terms": ("c2p", "p2c"),
}
"""By field: the texts that it may have, where its annotation does not say it."""
