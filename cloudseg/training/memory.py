"""When a patch does not fit into memory: find out which one does."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from cloudseg.geometry import XYZ

_SIGNS = ("out of memory", "can't allocate memory", "could not create a memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory ran out, of a GPU or of the machine."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


def smaller_patches(shape: XYZ, *, multiple: XYZ) -> Iterator[XYZ]:
    """Yield ever smaller patches of about the same proportions, each edge a multiple of the network's."""
    last = shape
    for tenths in range(9, 0, -1):
        x, y, z = (max(s * tenths // 10 // m, 1) * m for s, m in zip(shape, multiple, strict=True))
        smaller = (min(x, shape[0]), min(y, shape[1]), min(z, shape[2]))
        if smaller != last:
            yield smaller
        last = smaller


def largest_patch(step: Callable[[XYZ], None], shape: XYZ, *, multiple: XYZ) -> XYZ | None:
    """Return the largest patch below ``shape`` for which ``step`` has enough memory, by trying; None if none has."""
    for patch in smaller_patches(shape, multiple=multiple):
        free_memory()
        try:
            step(patch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            return patch
    return None


def trial_step(
    network: nn.Module,
    loss: Callable[[Any, Tensor, Tensor], Tensor],
    *,
    device: torch.device,
    batch_size: int,
    n_channels: int,
    half: bool,
) -> Callable[[XYZ], None]:
    """Return a function that does one step on zeros of a patch shape, without a change of the weights.

    It also holds what an AdamW that has not begun yet will need: two numbers a weight.
    """

    def step(patch: XYZ) -> None:
        moments = [torch.empty_like(p) for p in network.parameters() for _ in range(2)]
        image = torch.zeros((batch_size, 1, *patch), device=device)
        values = torch.zeros((batch_size, n_channels, *patch), device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            logits = network(image)
        loss(logits, values, torch.ones_like(values)).backward()
        network.zero_grad(set_to_none=True)
        del moments

    return step


def free_memory() -> None:
    """Give back what a failed step held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
