"""``python -m xlnet_pipeline``: the command line."""

import sys

from xlnet_pipeline.cli import main

sys.exit(main())
