"""Random numbers from a given generator, and generators seeded by purpose."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from unmix.errors import UserError

__all__ = ["beta", "device_of", "generator_for", "global_seed", "on_device", "uniform"]


def generator_for(seed: int, *place: int | str) -> torch.Generator:
    """Return a CPU generator whose stream depends only on the seed and the place.

    `generator_for(seed, "step", 17)` gives the same numbers whether or not the run was resumed
    before step 17, and whatever other parts of the program have drawn.

    Args:
        seed: The run's seed.
        place: What the numbers are for: any sequence of strings and integers.
    """
    digest = hashlib.blake2b(repr((seed, *place)).encode(), digest_size=8).digest()
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(digest, "little") >> 1)
    return generator


def device_of(generator: torch.Generator | None) -> torch.device:
    """The device of the numbers that a generator gives; the CPU for PyTorch's own.

    Raises:
        UserError: if it is something else, such as a seed.
    """
    if generator is None:
        return torch.device("cpu")
    if not isinstance(generator, torch.Generator):
        raise UserError(
            f"generator: {generator!r} is none of PyTorch; give one, such as "
            "torch.Generator().manual_seed(0)."
        )
    return generator.device


def uniform(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Draw float32 numbers from U[0, 1) of shape `shape`, on the generator's device."""
    return torch.rand(shape, generator=generator, device=device_of(generator), dtype=torch.float32)


def beta(a: float, b: float, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Draw float32 numbers from Beta(a, b) of shape `shape`, on the generator's device.

    PyTorch's Beta takes no generator, so parameters other than (1, 1) use NumPy's, seeded from the
    generator.
    """
    if a == 1 and b == 1:
        return uniform(shape, generator)
    device = device_of(generator)
    seed = torch.randint(2**63 - 1, (), generator=generator, device=device).item()
    numbers = np.random.default_rng(int(seed)).beta(a, b, size=shape)
    return torch.as_tensor(numbers, dtype=torch.float32, device=device)


def on_device(generator: torch.Generator, device: torch.device) -> torch.Generator:
    """Return the generator if it is on `device`, else one there that is seeded from it."""
    if generator.device.type == device.type:
        return generator
    seed = torch.randint(2**62, (), generator=generator, device=generator.device).item()
    return torch.Generator(device).manual_seed(int(seed))


@contextmanager
def global_seed(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Within, PyTorch's own random numbers are those of a seed that is drawn from a generator.

    For layers that take no generator, such as dropout. Outside, they go on as if nothing was drawn.

    Args:
        generator: Of the step.
        device: Where the layers are.
    """
    seed = torch.randint(2**62, (), generator=generator, device=generator.device).item()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int(seed))
        yield
