"""`python -m refusal_edge.cli`."""

import sys

from refusal_edge.cli import main

sys.exit(main())
