"""Run the command line: `python -m bertjax`."""

import sys

from bertjax.commands.main import main

sys.exit(main())
