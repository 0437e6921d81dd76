"""Run the command line: `python -P -m bertjax`.

Without -P Python looks for modules in the current folder first, so that a json.py there would be run. It is taken off
the path here, before any module of Python's library is imported; but a bertjax.py there has been run by then.
"""

import os
import sys

_CHECKOUT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
if not sys.flags.safe_path and os.path.realpath(sys.path[0]) != _CHECKOUT:
    del sys.path[0]

from bertjax.commands.main import main  # noqa: E402

sys.exit(main())
