"""Random numbers as functions of what they are for: a seed and a name, an epoch and a row, never of call order."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

UInt64s = npt.NDArray[np.uint64]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def derive_seed(seed: int, name: str) -> int:
    """A 63-bit seed of its own for one purpose, e.g. derive_seed(7, "order")."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def mix64(x: UInt64s) -> UInt64s:
    """The finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): a bijection of uint64 that scatters its bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniforms(seed: int, epochs: npt.NDArray[np.int64], key_hashes: UInt64s, num: int) -> npt.NDArray[np.float64]:
    """Draws in [0, 1) for augmentation, float64[len(epochs), num], each keyed by (seed, epoch, key hash, column)."""
    stream = mix64(key_hashes + _GOLDEN * epochs.astype(np.uint64)) ^ mix64(np.array([seed], np.uint64))
    columns = _GOLDEN * np.arange(1, num + 1, dtype=np.uint64)
    bits = mix64(mix64(stream[:, None] + columns[None, :]))
    return np.asarray((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def permute(
    positions: npt.NDArray[np.int64], size: int | npt.NDArray[np.int64], keys: UInt64s
) -> npt.NDArray[np.int64]:
    """Where keyed permutations of range(size) send `positions`; no table, whatever the size.

    A six-round Feistel network over the next power of four, walked along its cycle until it lands below `size`
    (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).

    Args:
        positions: int64[n], each in [0, size).
        size: length of the permutation, one for all or int64[n].
        keys: uint64[n], the permutation to use for each position.
    """
    sizes = np.broadcast_to(size, positions.shape)
    _, bits = np.frexp(np.maximum(sizes - 1, 1))  # their length in binary
    halves = np.maximum(3, (bits + 1) // 2).astype(np.uint64)
    out = positions.astype(np.uint64)
    walking = np.ones(len(out), bool)
    while walking.any():
        out[walking] = _feistel(out[walking], halves[walking], keys[walking])
        walking[walking] = out[walking] >= sizes[walking]
    return out.astype(np.int64)


def _feistel(x: UInt64s, half: UInt64s, keys: UInt64s) -> UInt64s:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = x >> half, x & mask
    for number in range(1, 7):
        round_keys = keys + _GOLDEN * np.array([number], np.uint64)
        left, right = right, left ^ (mix64(right ^ mix64(round_keys)) & mask)
    return (left << half) | right
