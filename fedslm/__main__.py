"""`python -m fedslm` is the command `fedslm`."""

import sys

from fedslm.cli import main

sys.exit(main())
