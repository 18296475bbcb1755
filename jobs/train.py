"""ray job submit --working-dir . -- python jobs/train.py CONFIG.yaml [--dotted.path value ...]"""

import sys

from raycnn.cli import main

if __name__ == "__main__":
    main(["train", "--address", "auto", *sys.argv[1:]])
