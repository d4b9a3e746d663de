"""`python -m unmix`."""

import sys

from unmix.cli import main

sys.exit(main())
