"""``python -m xlnet_pipeline.reference``: write docs/commands.md, machines.md and recipe.md from the code."""

import sys

from xlnet_pipeline.reference.pages import main

if __name__ == "__main__":
    sys.exit(main())
