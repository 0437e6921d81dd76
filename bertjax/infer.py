"""Use a trained model: all that a notebook calls, from one place.

model = bertjax.load("runs/sst2/best")
list(bertjax.infer.classify(model, ["A fine film."]))
"""

from bertjax.embedding import embed as embed
from bertjax.export import convert as convert
from bertjax.export import save_hf as save_hf
from bertjax.fill import fill_mask as fill_mask
from bertjax.model import Model as Model
from bertjax.model import load as load
from bertjax.predict import answer as answer
from bertjax.predict import choose as choose
from bertjax.predict import classify as classify
from bertjax.predict import tag as tag
