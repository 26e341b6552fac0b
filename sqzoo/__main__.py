"""`python -m sqzoo`: the command line."""

import sys

from sqzoo.cli import main

sys.exit(main())
