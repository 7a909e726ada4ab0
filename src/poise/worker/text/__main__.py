"""`python -m poise.worker.text FD`."""

import sys

from poise.worker.text.process import main

sys.exit(main())
