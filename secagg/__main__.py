"""`python -m secagg`: the same as the `secagg` command."""

import sys

from secagg.cli import main

sys.exit(main())
