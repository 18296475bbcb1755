"""Bytes in and out: one interface over S3 and directories, retries, and the lease of a run."""

from raycnn.storage.base import Entry, Reader, Store, open_images, open_store

__all__ = ["Entry", "Reader", "Store", "open_images", "open_store"]
