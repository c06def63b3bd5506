"""``python -m xlnet_cluster JOBSET KIND OWNER COMMAND…``: what each pod of a JobSet starts."""

import sys

from xlnet_cluster import guard

if __name__ == "__main__":
    guard.main(sys.argv[1:])
