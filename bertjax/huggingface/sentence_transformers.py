"""Read and write the modules of a sentence-transformers folder: pooling, layers after it, lengths, prompts.

`modules.json` lists them; each has a folder of its own with a `config.json`. What sentence-transformers does with a key
is done here, or the key is refused with its value: sentence_transformers 6, base/model.py, base/modules/,
sentence_transformer/modules/. Older folders name the same classes by older paths.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from bertjax.errors import InputError
from bertjax.huggingface.folder import (
    CONFIG,
    MODULES,
    WEIGHTS,
    find_tensors,
    folder_inside,
    read_json,
    read_tensor,
    write_folder,
)
from bertjax.models import layers, sentence
from bertjax.models.layers import Norm
from bertjax.models.sentence import Pooling, Projection, SentenceEmbedding, UnitLength
from bertjax.storage.files import write
from bertjax.types import Params

SETTINGS = "config_sentence_transformers.json"
_TRANSFORMER = tuple(
    f"sentence_{name}_config.json" for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta",
                                                "xlnet")
)  # fmt: skip
_TOKENIZER = "tokenizer_config.json"
_NORM_EPS = 1e-5  # of torch.nn.LayerNorm

_POOLING: dict[str, Pooling] = {
    "cls": sentence.cls_token,
    "max": sentence.max_tokens,
    "mean": sentence.mean_tokens,
    "mean_sqrt_len_tokens": sentence.mean_sqrt_length,
    "weightedmean": sentence.weighted_mean,
    "lasttoken": sentence.last_token,
}
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""The keys of versions before 6, in the order in which several are concatenated."""

_ACTIVATIONS = {
    "Identity": sentence.identity,
    "Tanh": layers.tanh,
    "ReLU": layers.relu,
    "GELU": layers.gelu,
    "SiLU": layers.silu,
    "Mish": layers.mish,
    "Sigmoid": sentence.sigmoid,
}
"""By the names of classes in torch.nn, as they are without arguments."""

_MOST_MODULES = 64
_INDIFFERENT = {"unpad_inputs", "max_seq_length", "do_lower_case"}  # the first is speed alone, the others are obeyed
_TEXT = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
_ONLY: dict[str, tuple[Any, ...]] = {
    "transformer_task": ("feature-extraction",),
    "modality_config": (_TEXT,),
    "module_output_name": ("token_embeddings",),
    "query_length": (None,),
    "document_length": (None,),
    "query_expansion": (None,),
    "processing_kwargs": (None, {}),
    "tokenizer_name_or_path": (None,),
}
"""Keys of the transformer module with the only values that are supported."""

_LOADING = {
    "model": {"attn_implementation", "torch_dtype", "dtype", "add_pooling_layer", "use_safetensors"},
    "processor": {"model_max_length", "use_fast"},
    "config": {"add_pooling_layer", "use_memory_efficient_attention", "unpad_inputs"},
}  # fmt: skip
"""Arguments for loading that do not change what is computed here, or are obeyed; each mapping has two names."""
_FORMER_LOADING = {"model": "model_args", "processor": "tokenizer_args", "config": "config_args"}


class _Module(NamedTuple):
    """A line of modules.json: the name of the class, the path as it stands there, and the folder."""

    kind: str
    path: str
    folder: Path


class Modules(NamedTuple):
    """What modules.json describes. similarity: which one vectors are meant for, as the folder says, or ""."""

    head: SentenceEmbedding
    params: Params
    similarity: str
    reported: tuple[str, ...]


def has_modules(folder: Path) -> bool:
    """Return whether a folder is one of sentence-transformers."""
    return (folder / MODULES).exists()


def transformer_folder(folder: Path) -> Path:
    """Return the folder of the model itself: where modules.json says, such as `0_Transformer`; else the folder.

    Raises InputError where there is none, because modules.json names another kind of model.
    """
    if not has_modules(folder):
        return folder
    try:
        first = _modules(folder)[0]
    except InputError:
        if (folder / CONFIG).exists():
            return folder  # the model can be read; `read_modules` says what is wrong
        raise
    if first.kind == "Transformer" or (folder / CONFIG).exists():
        return first.folder if first.kind == "Transformer" else folder
    raise _unsupported(folder, first)


def read_modules(folder: Path, encoder: Any) -> Modules:
    """Read the modules of a folder for its encoder.

    Raises InputError, with the name and the value, for modules and settings that would compute something else than this
    package does, and for damaged files.
    """
    settings = _optional(folder, SETTINGS)
    kind = settings.get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer":
        raise InputError(f"{folder / SETTINGS}: model_type={kind!r} is not supported, only SentenceTransformer")
    first, *others = _modules(folder)
    if first.kind != "Transformer":
        raise _unsupported(folder, first)
    length, lowercase = _read_transformer(first.folder, encoder)
    if not others or others[0].kind != "Pooling":
        found = others[0].kind if others else "nothing"
        raise InputError(f"{folder / MODULES}: {found} follows the Transformer: only Pooling is supported there")
    pooling, include_prompt = _read_pooling(folder, others[0])
    transforms: list[nn.Module] = []
    params: dict[str, Params] = {}
    reported: list[str] = []
    width = len(pooling) * encoder.D
    for each in others[1:]:
        if each.kind == "Dropout":
            reported.append(f"{each.path or each.kind} is left out: nothing is dropped in inference")
            continue
        transform, own, width = _read_transform(folder, each, width)
        if own:
            params[f"transforms_{len(transforms)}"] = own
        transforms.append(transform)
    prompts, default = _read_prompts(folder, settings)
    kept = settings.get("truncate_dim") or 0
    if type(kept) is not int or kept < 0:
        raise InputError(f"{folder / SETTINGS}: truncate_dim={kept!r} is not a number of dimensions")
    head = SentenceEmbedding(
        pooling, tuple(transforms), kept if kept < width else 0, length, lowercase, prompts, default, include_prompt
    )
    similarity = settings.get("similarity_fn_name")
    return Modules(head, params, similarity if isinstance(similarity, str) else "", tuple(reported))


def _modules(folder: Path) -> list[_Module]:
    """Read modules.json. Raises InputError for paths outside of the folder."""
    path = folder / MODULES
    entries = read_json(folder, MODULES, list)
    if not entries or not all(isinstance(entry, dict) and isinstance(entry.get("type"), str) for entry in entries):
        raise InputError(f"{path} is not a list of modules with their types")
    if len(entries) > _MOST_MODULES:
        raise InputError(f"{path} lists {len(entries):,} modules: no real one has over {_MOST_MODULES}")
    found = []
    for entry in entries:
        kind, where = entry["type"], entry.get("path", "")
        if not kind.startswith("sentence_transformers."):
            raise InputError(f"{path} names {kind}: a module with code of its own, which is not run here")
        if not isinstance(where, str) or any(part in ("..", "/") for part in PurePosixPath(where).parts):
            raise InputError(f"{path} names the folder {where!r}: only folders inside the folder itself are read")
        found.append(_Module(kind.rpartition(".")[2], where, folder_inside(folder, where)))
    return found


def _unsupported(folder: Path, module: _Module) -> InputError:
    return InputError(
        f"{folder / MODULES} names {module.kind}{f' in {module.path}' if module.path else ''}: supported are one "
        "Transformer, Pooling, and then Dense, LayerNorm, Dropout and Normalize"
    )


def _optional(folder: Path, name: str) -> dict[str, Any]:
    return dict(read_json(folder, name, dict)) if (folder / name).exists() else {}


def _read_transformer(folder: Path, encoder: Any) -> tuple[int, bool]:
    """Return the length of the transformer module, 0 for none, and whether it lower-cases texts."""
    name = next((name for name in _TRANSFORMER if (folder / name).exists()), _TRANSFORMER[0])
    config = _optional(folder, name)
    loading: dict[str, Any] = {}
    for kind, known in _LOADING.items():
        key = _FORMER_LOADING[kind] if _FORMER_LOADING[kind] in config else f"{kind}_kwargs"
        given = config.pop(key, None) or {}
        if not isinstance(given, dict):
            raise InputError(f"{folder / name}: {key}={given!r} are not arguments by name")
        for each in given.keys() - known - {"trust_remote_code"}:
            raise InputError(f"{folder / name}: {key} has {each}={given[each]!r}, which is not supported")
        loading |= given
    for key, value in config.items():
        if key not in _INDIFFERENT and value not in _ONLY.get(key, ()):
            raise InputError(f"{folder / name}: {key}={value!r} is not supported")
    # An explicit length is taken as it is, even beyond the positions; that of the tokenizer is not.
    length = loading.get("model_max_length", config.get("max_seq_length"))
    if length is None:
        stated = _optional(folder, _TOKENIZER).get("model_max_length") or 2**31
        if not isinstance(stated, int | float):
            raise InputError(f"{folder / _TOKENIZER}: model_max_length={stated!r} is not a number of tokens")
        length = min(stated, encoder.max_length or 2**31)
        length = 0 if length >= 2**31 else length
    if type(length) is not int or not 0 <= length < 2**31:
        raise InputError(f"{folder / name}: max_seq_length={length!r} is not a number of tokens")
    lowercase = config.get("do_lower_case") or False
    if not isinstance(lowercase, bool):
        raise InputError(f"{folder / name}: do_lower_case={lowercase!r} is neither true nor false")
    return length, lowercase


def _read_pooling(folder: Path, module: _Module) -> tuple[tuple[Pooling, ...], bool]:
    """Return the functions of a pooling module, and whether the tokens of a prompt are pooled."""
    path, config = module.folder / CONFIG, dict(read_json(module.folder, CONFIG, dict))
    for key in ("word_embedding_dimension", "embedding_dimension"):  # stated, but not used
        config.pop(key, None)
    flags = {mode: config.pop(key) for key, mode in _FLAGS.items() if key in config}
    modes = config.pop("pooling_mode", [mode for mode, flag in flags.items() if flag] or "mean")
    modes = [modes] if isinstance(modes, str) else modes
    include_prompt = config.pop("include_prompt", True)
    for key, value in config.items():
        raise InputError(f"{path}: {key}={value!r} is not supported")
    if (
        not isinstance(modes, list)
        or not modes
        or not all(isinstance(mode, str) and mode in _POOLING for mode in modes)
    ):
        raise InputError(f"{path}: pooling_mode={modes!r} is not supported, only {', '.join(_POOLING)}")
    if len(set(modes)) < len(modes):
        raise InputError(f"{path}: pooling_mode names one of {', '.join(_POOLING)} twice: name each once")
    return tuple(_POOLING[mode] for mode in modes), bool(include_prompt)


def _read_transform(folder: Path, module: _Module, width: int) -> tuple[nn.Module, Params, int]:
    """Return a module after the pooling of vectors of this width, its parameters, and the width of its vectors."""
    path = module.folder / CONFIG
    if module.kind == "Normalize":
        config = dict(read_json(module.folder, CONFIG, dict)) if path.exists() and module.path else {}
        _check_ports(path, config)
        return UnitLength(), {}, width
    if module.kind not in ("Dense", "LayerNorm"):
        raise _unsupported(folder, module)
    config = dict(read_json(module.folder, CONFIG, dict))
    if module.kind == "LayerNorm":
        norm = Norm(config.get("dimension", width), _NORM_EPS)
        shapes: dict[str, tuple[int, ...]] = {"norm.weight": (norm.width,), "norm.bias": (norm.width,)}
        tensors = _read_weights(folder, module, shapes, width, norm.width)
        return norm, {"scale": tensors["norm.weight"], "bias": tensors["norm.bias"]}, width
    _check_ports(path, config)
    projection = _projection(path, config)
    inputs, outputs = projection.inputs, projection.outputs
    shapes = {"linear.weight": (outputs, inputs)} | ({"linear.bias": (outputs,)} if projection.use_bias else {})
    through = projection.residual and inputs != outputs
    shapes |= {"residual.weight": (outputs, inputs)} if through else {}
    tensors = _read_weights(folder, module, shapes, width, inputs)
    dense = {"kernel": tensors["linear.weight"].T}
    dense |= {"bias": tensors["linear.bias"]} if projection.use_bias else {}
    params: dict[str, Any] = {"dense": dense}
    params |= {"residual": {"kernel": tensors["residual.weight"].T}} if through else {}
    return projection, params, outputs


def _check_ports(path: Path, config: Mapping[str, Any]) -> None:
    """Raise InputError for a module that does not map sentence embeddings to sentence embeddings."""
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in (None, "sentence_embedding"):
            raise InputError(f"{path}: {key}={config[key]!r} is not supported, only sentence_embedding is")


def _projection(path: Path, config: Mapping[str, Any]) -> Projection:
    inputs, outputs = config.get("in_features"), config.get("out_features")
    if not (isinstance(inputs, int) and isinstance(outputs, int) and 0 < inputs < 2**31 and 0 < outputs < 2**31):
        raise InputError(f"{path}: in_features={inputs!r}, out_features={outputs!r} are not two sizes")
    name = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    known = isinstance(name, str) and name.startswith("torch.nn.") and name.rpartition(".")[2] in _ACTIVATIONS
    if not known:
        raise InputError(
            f"{path}: activation_function={name!r} is not supported, only {', '.join(_ACTIVATIONS)} of torch.nn are"
        )
    bias, residual = config.get("bias", True), config.get("use_residual", False)
    if not isinstance(bias, bool) or not isinstance(residual, bool):
        raise InputError(f"{path}: bias={bias!r}, use_residual={residual!r} are not true or false")
    return Projection(inputs, outputs, _ACTIVATIONS[name.rpartition(".")[2]], bias, residual)


def _read_weights(
    folder: Path, module: _Module, shapes: Mapping[str, tuple[int, ...]], width: int, inputs: int
) -> dict[str, np.ndarray]:
    """Read the tensors of a module, which must have these shapes, in float32."""
    if inputs != width:
        raise InputError(f"{module.folder / CONFIG}: it takes {inputs} numbers a text, but is given {width}")
    if not (module.folder / WEIGHTS).exists():
        pickled = (module.folder / "pytorch_model.bin").exists()
        raise InputError(
            f"{module.folder} has no {WEIGHTS}"
            + (
                ", only pytorch_model.bin, which can run code and is never opened here: save the model again where you "
                "trust it, with sentence-transformers: SentenceTransformer(folder).save(new_folder)"
                if pickled
                else ""
            )
        )
    tensors = find_tensors(module.folder)
    given = {name: tensor.shape for name, tensor in tensors.items()}
    if given != dict(shapes):
        raise InputError(f"{module.folder / WEIGHTS} has tensors {given}, {CONFIG} beside it asks for {dict(shapes)}")
    for name, tensor in tensors.items():
        if tensor.dtype not in ("F32", "F16", "BF16"):
            raise InputError(f"{module.folder / WEIGHTS}: {name} has dtype {tensor.dtype}: only floats are read")
    return {name: read_tensor(tensor).astype(np.float32) for name, tensor in tensors.items()}


def _read_prompts(folder: Path, settings: Mapping[str, Any]) -> tuple[tuple[tuple[str, str], ...], str]:
    """Return the prompts by name, and the name of the default one or ""."""
    prompts, default = settings.get("prompts") or {}, settings.get("default_prompt_name") or ""
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise InputError(f"{folder / SETTINGS}: prompts={prompts!r} are not texts by name")
    if default and (not isinstance(default, str) or default not in prompts):
        raise InputError(f"{folder / SETTINGS}: default_prompt_name={default!r} is none of {', '.join(prompts) or 'no'}"
                         " prompts")  # fmt: skip
    return tuple((name, text or "") for name, text in prompts.items()), str(default)


def write_modules(folder: Path, head: SentenceEmbedding, params: Params, encoder: Any, similarity: str = "") -> None:
    """Write modules.json and the modules beside a model that is in the folder already, for all versions since 2.

    Raises InputError where they would be read as something else.
    """
    listed = [("", "Transformer"), ("1_Pooling", "Pooling")]
    for number, transform in enumerate(head.transforms):
        kind = {UnitLength: "Normalize", Projection: "Dense", Norm: "LayerNorm"}[type(transform)]
        listed.append((f"{number + 2}_{kind}", kind))
        if kind != "Normalize":
            config, tensors = _described(transform, params[f"transforms_{number}"])
            write_folder(folder / listed[-1][0], config, tensors)
    entries = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(listed)
    ]
    _write(folder / MODULES, entries)
    _write(folder / "1_Pooling" / CONFIG, _pooling_config(head, encoder.D))
    length = {"max_seq_length": head.max_length} if head.max_length else {}
    _write(folder / _TRANSFORMER[0], length | {"do_lower_case": head.lowercase})
    settings: dict[str, Any] = {"prompts": dict(head.prompts), "default_prompt_name": head.default_prompt or None}
    settings |= {"similarity_fn_name": similarity} if similarity else {}
    settings |= {"truncate_dim": head.width} if head.width else {}
    _write(folder / SETTINGS, settings)
    again = read_modules(folder, encoder).head
    if again != (head if head.max_length else head.clone(max_length=again.max_length)):
        raise InputError(f"sentence-transformers has no modules that compute {head}")


def _described(transform: nn.Module, params: Params) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return config.json and the tensors of a module after the pooling."""
    if isinstance(transform, Norm):
        tensors = {"norm.weight": np.asarray(params["scale"]), "norm.bias": np.asarray(params["bias"])}
        return {"dimension": transform.width}, tensors
    assert isinstance(transform, Projection)
    name = next(name for name, function in _ACTIVATIONS.items() if function == transform.activation)
    module = "linear" if name == "Identity" else "activation"
    config = {
        "in_features": transform.inputs,
        "out_features": transform.outputs,
        "bias": transform.use_bias,
        "activation_function": f"torch.nn.modules.{module}.{name}",
    }
    config |= {"use_residual": True} if transform.residual else {}  # versions before 5.7 do not know the key
    tensors = {"linear.weight": np.asarray(params["dense"]["kernel"]).T}
    tensors |= {"linear.bias": np.asarray(params["dense"]["bias"])} if transform.use_bias else {}
    tensors |= {"residual.weight": np.asarray(params["residual"]["kernel"]).T} if "residual" in params else {}
    return config, tensors


def _pooling_config(head: SentenceEmbedding, D: int) -> dict[str, Any]:
    """Describe the pooling by the keys of older versions, or by today's where they concatenate in another order."""
    modes = [next(mode for mode, function in _POOLING.items() if function == pool) for pool in head.pooling]
    stated = {"word_embedding_dimension": D, "include_prompt": head.include_prompt}
    if modes == [mode for mode in _POOLING if mode in modes]:
        return stated | {key: mode in modes for key, mode in _FLAGS.items()}
    return stated | {"pooling_mode": modes}


def _write(path: Path, value: Mapping[str, Any] | Sequence[Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    write(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
