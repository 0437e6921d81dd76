"""Make the golden vectors of test_sentence_parity.py: what sentence-transformers computes of the small folders.

    pip install '.[parity]'
    python tests/parity/make_sentence_golden.py

One array for each kind of folder (tests/sentence_folders.py), a row for each text.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from golden import FOLDER
from sentence_folders import KINDS, TEXTS, sentence_folder
from sentence_transformers import SentenceTransformer

if __name__ == "__main__":
    found = {}
    for name, kind in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            model = SentenceTransformer(str(sentence_folder(Path(folder), **kind)), device="cpu")
            found[name] = model.encode(TEXTS)
    path = FOLDER / "sentence.npz"
    np.savez_compressed(path, **found)
    print(path.name, path.stat().st_size)
