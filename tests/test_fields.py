"""Fields of another type than is meant are refused with a sentence, as a model is built in Python."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bertjax
from bertjax.errors import InputError

SIZES = {"V": 500, "D": 32, "N": 2, "H": 2, "F": 64}
ENCODERS = [bertjax.Encoder, bertjax.Modern, bertjax.XLNet, bertjax.DeBERTa]
BAD = {"V": "500", "D": 32.0, "N": [2], "H": None, "F": True, "dropout": "0.1", "activation": "gelu",
       "initializer": 0.02,
       "dtype": jnp.bfloat16}  # fmt: skip


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("name", BAD)
def test_every_encoder_names_the_field_its_value_and_what_is_needed(kind, name):
    with pytest.raises(InputError, match=rf"^{kind.__name__}\.{name} is .*: .* needed$"):
        kind(**SIZES | {name: BAD[name]})


def test_numbers_of_numpy_functions_of_the_user_and_lists_are_taken():
    encoder = bertjax.Encoder(**SIZES | {"V": np.int64(500)}, initializer=jax.nn.initializers.normal(), dropout=0)
    masking = bertjax.Masking(mask_id=3, random_ids=[0, 500], specials=[1, 2])
    assert masking.specials == (1, 2) and hash(bertjax.MaskedLM(encoder, masking)) is not None


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda e, m: bertjax.MaskedLM(m, e), "MaskedLM.encoder is a Masking: a LanguageEncoder is needed"),
        (lambda e, m: bertjax.MaskedLM(bertjax.Encoder, m), "MaskedLM.encoder is the class Encoder"),
        (lambda e, m: bertjax.PermutationLM(e, bertjax.Permutation((1,))), "is an Encoder: an XLNet is needed"),
        (lambda e, m: bertjax.Modern(**SIZES, positions=bertjax.Rotary), "is the class Rotary: a Rotary or"),
        (lambda e, m: bertjax.Masking("[MASK]", (0, 9)), r"mask_id is '\[MASK\]': an integer is needed"),
        (lambda e, m: bertjax.Masking(3, 500), r"is 500: a tuple \(an integer, an integer\) is needed"),
        (lambda e, m: bertjax.Rotary("1e4"), "Rotary.theta is '1e4': a number, such as 10000.0, is needed"),
        (lambda e, m: bertjax.Phase("3", 8, None), "Phase.steps is '3'"),
        (lambda e, m: bertjax.fit("mine.py", "run"), "experiment is 'mine.py': an Experiment is needed"),
        (lambda e, m: bertjax.save_hf(e, "folder"), "model is an Encoder: a Model is needed, such as bertjax.load"),
        (lambda e, m: bertjax.embed("run", "a text"), "model is 'run': a Model is needed"),
        (lambda e, m: bertjax.load(7), "7 is no path"),
        (lambda e, m: bertjax.load_tokenizer(None), "None is no path"),
        (lambda e, m: bertjax.load_experiment(["a"]), r"\['a'\] is no path"),
    ],
)
def test_other_public_names_refuse_another_kind_of_thing(build, message):
    encoder, masking = bertjax.Encoder(**SIZES), bertjax.Masking(mask_id=3, random_ids=(0, 500))
    with pytest.raises(InputError, match=message):
        build(encoder, masking)


def test_completion_offers_every_public_name_before_anything_is_imported():
    program = (
        "import bertjax, sys; print(*dir(bertjax)); assert 'jax' not in sys.modules and 'numpy' not in sys.modules"
    )
    names = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert set(bertjax.__all__) <= set(names)
    assert {name for name in names if not name.startswith("_")} == set(bertjax.__all__)
    for name in names:
        getattr(bertjax, name)


PUBLIC = [name for name in bertjax.__all__ if dataclasses.is_dataclass(getattr(bertjax, name))]


@pytest.mark.parametrize("name", PUBLIC)
def test_help_says_what_every_field_means(name):
    kind = getattr(bertjax, name)
    fields = {field.name for field in dataclasses.fields(kind) if field.init} - {"parent", "name"}
    missing = [field for field in fields if f"{field}: " not in kind.__doc__ and f"`{field}`" not in kind.__doc__]
    assert not [field for field in missing if f"{field}," not in kind.__doc__]


@pytest.mark.parametrize("kind", ENCODERS)
def test_the_example_of_every_encoder_runs(kind):
    _, _, after = kind.__doc__.partition("Example:\n")
    lines = after.split("\n\n")[0].splitlines()
    names = {"bertjax": bertjax, "jax": jax, "jnp": jnp}
    program = "\n".join(line.strip() for line in lines).replace("params = encoder.init", "init = encoder.init")
    program = program.replace("init = encoder.init(", "params = draw(encoder, ").replace(')["params"]', ")")
    names["draw"] = lambda encoder, *inputs: jax.tree.map(
        lambda x: jnp.zeros(x.shape), jax.eval_shape(encoder.init, *inputs)["params"]
    )
    exec(program, names)
    assert names["x_BLD"].shape == (1, 4, 128)
