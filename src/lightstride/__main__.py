"""`python -m lightstride`, and so `torchrun -m lightstride`."""

import sys

from lightstride.cli import main

sys.exit(main())
