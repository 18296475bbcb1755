"""ray job submit --working-dir . -- python jobs/shift.py CONFIG.yaml [--dotted.path value ...]"""

import sys

from raycnn.cli import main

if __name__ == "__main__":
    main(["shift", "--address", "auto", *sys.argv[1:]])
