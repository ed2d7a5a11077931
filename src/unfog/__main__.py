"""``python -m unfog`` is the command line."""

import sys

from unfog.cli import main

sys.exit(main())
