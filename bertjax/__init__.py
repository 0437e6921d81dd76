"""Pre-train, fine-tune and serve encoder language models in JAX.

In a notebook:

    import bertjax, jax
    encoder = bertjax.Encoder(V=30522, D=128, N=2, H=2, F=512)
    objective = bertjax.MaskedLM(encoder, bertjax.Masking(mask_id=103, random_ids=(0, 30522), specials=(101, 102)))
    params = objective.init(jax.random.key(0), batch)

Array names end in their dimensions: B rows of a batch, L positions of a row, V ids of the vocabulary, D width of the
model, N layers, H attention heads, F width of the feed-forward. `help(bertjax.Encoder)` has every field. See
docs/notebooks.md, and README.md for the other ways in.
"""

import importlib

# Nothing else is imported here: `python -m bertjax` looks for modules in the current folder until __main__.py runs.
TYPE_CHECKING = False  # as typing has it, for type checkers alone

if TYPE_CHECKING:
    from typing import Any

    from bertjax import report as report
    from bertjax.checkpoints.export import save_hf as save_hf
    from bertjax.checkpoints.trained import load as load
    from bertjax.config import Experiment as Experiment
    from bertjax.config import Phase as Phase
    from bertjax.config import load_experiment as load_experiment
    from bertjax.data.tokenizer import load_tokenizer as load_tokenizer
    from bertjax.inference import checked as infer
    from bertjax.inference.checked import embed as embed
    from bertjax.inference.program import exported as exported
    from bertjax.inference.program import load_program as load_program
    from bertjax.inference.program import save_program as save_program
    from bertjax.masking import Masking as Masking
    from bertjax.masking import mask_tokens as mask_tokens
    from bertjax.models.deberta import DeBERTa as DeBERTa
    from bertjax.models.encoder import Encoder as Encoder
    from bertjax.models.modern import Modern as Modern
    from bertjax.models.positions import Rotary as Rotary
    from bertjax.models.recorded import attention as attention
    from bertjax.models.recorded import attention_terms as attention_terms
    from bertjax.models.recorded import hidden_states as hidden_states
    from bertjax.models.recorded import query_attention as query_attention
    from bertjax.models.xlnet import XLNet as XLNet
    from bertjax.objectives.diffusion import MaskedDiffusion as MaskedDiffusion
    from bertjax.objectives.distil import Distillation as Distillation
    from bertjax.objectives.mlm import MaskedLM as MaskedLM
    from bertjax.objectives.plm import PermutationLM as PermutationLM
    from bertjax.objectives.rtd import ReplacedTokenDetection as ReplacedTokenDetection
    from bertjax.objectives.sift import SiFT as SiFT
    from bertjax.permutation import Permutation as Permutation
    from bertjax.permutation import permute as permute
    from bertjax.train import fit as fit

# Found on first use, so that the processes that tokenise text need not import JAX.
_HOMES = {
    "DeBERTa": "bertjax.models.deberta",
    "Distillation": "bertjax.objectives.distil",
    "Encoder": "bertjax.models.encoder",
    "Experiment": "bertjax.config",
    "MaskedDiffusion": "bertjax.objectives.diffusion",
    "MaskedLM": "bertjax.objectives.mlm",
    "Masking": "bertjax.masking",
    "Modern": "bertjax.models.modern",
    "Permutation": "bertjax.permutation",
    "PermutationLM": "bertjax.objectives.plm",
    "Phase": "bertjax.config",
    "ReplacedTokenDetection": "bertjax.objectives.rtd",
    "Rotary": "bertjax.models.positions",
    "SiFT": "bertjax.objectives.sift",
    "XLNet": "bertjax.models.xlnet",
    "attention": "bertjax.models.recorded",
    "attention_terms": "bertjax.models.recorded",
    "embed": "bertjax.inference.checked",
    "exported": "bertjax.inference.program",
    "fit": "bertjax.train",
    "hidden_states": "bertjax.models.recorded",
    "load": "bertjax.checkpoints.trained",
    "load_experiment": "bertjax.config",
    "load_program": "bertjax.inference.program",
    "load_tokenizer": "bertjax.data.tokenizer",
    "mask_tokens": "bertjax.masking",
    "permute": "bertjax.permutation",
    "query_attention": "bertjax.models.recorded",
    "save_hf": "bertjax.checkpoints.export",
    "save_program": "bertjax.inference.program",
}

_MODULES = {"infer": "bertjax.inference.checked", "report": "bertjax.report"}

__all__ = [*_HOMES, "infer", "report"]


def __dir__() -> list[str]:
    """List the public names, so that completion offers them before their modules are imported."""
    return sorted({*__all__, "__version__", *(name for name in globals() if name.startswith("__"))})


def __getattr__(name: str) -> "Any":
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("bertjax")
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'bertjax' has no attribute {name!r}")
