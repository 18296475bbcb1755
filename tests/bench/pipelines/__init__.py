"""Ways of images into a training loop, raycnn's and others', each measured in a process of its own.

All end in the same: random resized crops of SIZE px with flips, normalised float32, BATCH at a time.
"""

BATCH = 32
SIZE = 224
WORKERS = 2
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
