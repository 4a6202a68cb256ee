"""Random numbers from keys: every one is a function of plain values, such as (seed, "sample", i), not of a state.

The same key gives the same numbers, and different keys give independent ones, however similar they are: images of seeds
0 and 1 have nothing in common. Keys are hashed, so a further part (the rank of a process, say) can be added to any.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from diffuse.system.device import send

KeyPart = int | str


def hash_key(*key: KeyPart) -> int:
    """128 bits that depend on every part of the key."""
    plain = [part if isinstance(part, str) else int(part) for part in key]
    return int.from_bytes(hashlib.sha256(repr(plain).encode()).digest()[:16], "big")


def generator(*key: KeyPart) -> np.random.Generator:
    """A generator for this key. numpy's takes all 128 bits; torch's CPU generator would keep only 32."""
    return np.random.Generator(np.random.PCG64(hash_key(*key)))


def reseed(*key: KeyPart) -> None:
    """Set torch's global generators, on every device, to a state that depends on the key alone.

    The CPU generator keeps 32 bits of it: of 800,000 training steps about 75 pairs will share their noise and levels,
    on different images.
    """
    torch.manual_seed(hash_key(*key) % 2**63)


class ImageNoise:
    """Standard normal noise for a batch, with a separate stream of random numbers for every image.

    The numbers of image i depend on (seed, purpose, i) alone, not on the rest of the batch or the device: they are
    drawn on the CPU. Called with a tensor [b, ...], it gives noise of that shape, type and device, as
    `torch.randn_like` would; each call continues every stream.
    """

    def __init__(self, seed: int, purpose: str, images: Sequence[int]):
        self.streams = [generator(seed, purpose, i) for i in images]

    def __call__(self, like: Tensor) -> Tensor:
        dtype = np.float64 if like.dtype == torch.float64 else np.float32
        drawn = np.stack([stream.standard_normal(like.shape[1:], dtype=dtype) for stream in self.streams])
        return send(torch.from_numpy(drawn), like.device).to(like.dtype)
