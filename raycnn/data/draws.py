"""What each uniform draw of a training view is for; an index has one meaning for ever.

So a new augmentation changes no view of the others.
"""

from __future__ import annotations

from typing import Final

NUM_DRAWS: Final = 32
"""Uniform draws per training view; those without a name are kept for augmentations to come."""

AREA, RATIO, LEFT, TOP, HFLIP, VFLIP, ROTATE = range(7)
BRIGHTNESS, CONTRAST, SATURATION, HUE, JITTER_ORDER = range(7, 12)
ERASE, ERASE_AREA, ERASE_RATIO, ERASE_LEFT, ERASE_TOP = range(12, 17)
POLICY: Final = 17
"""The first of the policies' draws: OP, MAGNITUDE and SIGN of each distortion, four at most."""
OP, MAGNITUDE, SIGN, POLICY_DRAWS = range(4)
