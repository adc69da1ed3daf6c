"""`python -m sparsekern` is `sparsekern`."""

import sys

from sparsekern.cli import main

sys.exit(main())
