"""Bytes in and out: object stores, directories, the lease."""
