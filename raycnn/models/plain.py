"""torch.save files as data: nothing in them is run, and nothing in them unpacks to more than they are."""

from __future__ import annotations

import zipfile
from io import BytesIO
from typing import Any

import torch


def load_plain(data: bytes) -> Any:
    """Tensors and plain values as torch.save wrote them, tensors on the CPU.

    Raises:
        Exception: of any type; hostile bytes make torch.load fail in every way there is.
    """
    if zipfile.is_zipfile(file := BytesIO(data)):
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
        packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
        if packed or sum(member.file_size for member in members) > len(data):  # torch packs nothing
            raise ValueError("a packed archive, which torch.save does not write")
    return torch.load(BytesIO(data), map_location="cpu", weights_only=True)
