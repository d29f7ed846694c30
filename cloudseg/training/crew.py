"""The processes that train one network together: alone, or those that ``torchrun`` started."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, Self

import torch
import torch.distributed
from torch import Tensor, nn

from cloudseg.errors import SpecError

# While the first process segments the validation boxes, the others wait.
_PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class Crew:
    """Who this process is among those that train together.

    Attributes
    ----------
    device
        Where this process computes.
    rank, size
        Its number, and how many there are.
    """

    device: torch.device
    rank: int = 0
    size: int = 1

    @classmethod
    def join(
        cls, device: Literal["auto", "cpu", "cuda"], *, environment: Mapping[str, str] = os.environ
    ) -> Self:
        """Find the others by what ``torchrun`` put into the environment; without that, be alone.

        Raises
        ------
        SpecError
            If there are fewer GPUs than processes.
        """
        kind = device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
        if kind == "cuda" and not torch.cuda.is_available():
            raise SpecError(
                "device 'cuda' was asked for, but this machine has no usable CUDA GPU; use device 'auto'"
            )
        size = int(environment.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls(torch.device(kind))
        rank, local = int(environment["RANK"]), int(environment["LOCAL_RANK"])
        place = torch.device(kind)
        if kind == "cuda":
            if local >= torch.cuda.device_count():
                raise SpecError(
                    f"process {local} of this machine has no GPU: there are {torch.cuda.device_count()}; "
                    f"start torchrun with --nproc-per-node={torch.cuda.device_count()}"
                )
            place = torch.device("cuda", local)
            torch.cuda.set_device(place)
        torch.distributed.init_process_group(
            "nccl" if kind == "cuda" else "gloo", rank=rank, world_size=size, timeout=_PATIENCE
        )
        return cls(place, rank, size)

    @property
    def kind(self) -> Literal["cpu", "cuda"]:
        """``cpu`` or ``cuda``."""
        return "cuda" if self.device.type == "cuda" else "cpu"

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and measures."""
        return self.rank == 0

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return ``network`` so that its gradients are averaged over all processes."""
        if self.size == 1:
            return network
        # Running statistics are averaged once a step (see `settle`), not sent before each pass.
        return nn.parallel.DistributedDataParallel(
            network, device_ids=[self.device] if self.kind == "cuda" else None, broadcast_buffers=False
        )

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of ``value`` over all processes."""
        if self.size == 1:
            return value
        total = value.detach().clone()
        torch.distributed.all_reduce(total)
        return total / self.size

    def settle(self, buffers: Iterable[Tensor]) -> None:
        """Average the running statistics of all processes, in place: each saw other patches."""
        if self.size > 1:
            for buffer in buffers:
                if buffer.is_floating_point():
                    buffer.copy_(self.mean(buffer))

    def told(self, value: float) -> float:
        """Return the first process's ``value`` in every process."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64, device=self.device)
        torch.distributed.broadcast(shared, src=0)
        return float(shared[0])

    def part(self) -> None:
        """Leave the others, once all are done."""
        if self.size > 1 and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
