"""ray job submit --working-dir . -- python jobs/lr_find.py CONFIG.yaml [--dotted.path value ...]"""

import sys

from raycnn.cli import main

if __name__ == "__main__":
    main(["lr-find", "--address", "auto", *sys.argv[1:]])
