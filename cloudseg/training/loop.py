"""The training loop: seeded, checkpointed, with data loading hidden behind the network."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cloudseg.errors import SpecError
from cloudseg.training.loss import balanced_bce
from cloudseg.training.sampling import Sample, Sampler

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoopOptions:
    """How long and how fast to train."""

    n_steps: int
    batch_size: int = 1
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    average_decay: float = 0.997
    seed: int = 0
    checkpoint_every: int = 200
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Progress:
    """One line of the training log."""

    step: int
    loss: float
    seconds: float


def train(
    model: nn.Module,
    sampler: Sampler,
    options: LoopOptions,
    *,
    checkpoint: Path,
    report: Callable[[Progress], None],
) -> nn.Module:
    """Train ``model`` and return the running average of its weights.

    Each step draws from its own seed, so a run that is stopped and started again from ``checkpoint`` sees the same
    examples as one that was not.

    Parameters
    ----------
    model
        The network; its parameters are changed in place.
    sampler
        Where examples come from.
    options
        Steps, rates, seed.
    checkpoint
        File that is written every ``checkpoint_every`` steps (atomically) and resumed from if it exists.
    report
        Called after each step.

    Raises
    ------
    SpecError
        If the loss is not a finite number; the last checkpoint is kept.
    """
    device = torch.device(options.device)
    model = model.to(device).to(memory_format=torch.channels_last_3d).train()  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
    )
    decay = options.average_decay
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(decay), use_buffers=True
    )
    first = _resume(checkpoint, model, average, optimizer) if checkpoint.exists() else 0
    started = time.monotonic()
    for step, batch in zip(range(first, options.n_steps), _batches(sampler, options, first=first)):
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * _schedule(step, options.n_steps)
        image, targets, known = (torch.from_numpy(a).to(device, non_blocking=True) for a in batch)
        optimizer.zero_grad(set_to_none=True)
        half = torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()
        with half:
            logits = model(image)
        loss = balanced_bce(logits.float(), targets, known)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise SpecError(
                f"the loss became {value} at step {step}; lower learning_rate (now {options.learning_rate}); "
                f"the last good state is in {checkpoint}"
            )
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(model)
        report(Progress(step, value, time.monotonic() - started))
        if (step + 1) % options.checkpoint_every == 0 or step + 1 == options.n_steps:
            _save(checkpoint, step + 1, model, average, optimizer)
    averaged: nn.Module = average.module
    return averaged.eval()


def _schedule(step: int, n_steps: int) -> float:
    """Warm up over 50 steps, then half a cosine down to 2 %."""
    warm = min(1.0, (step + 1) / 50)
    return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / max(n_steps, 1))))


def _batches(sampler: Sampler, options: LoopOptions, *, first: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield stacked examples, drawn a few steps ahead in a thread of their own."""

    def draw(step: int) -> tuple[np.ndarray, ...]:
        rng = np.random.default_rng([options.seed, step])
        samples: list[Sample] = [sampler.draw(rng) for _ in range(options.batch_size)]
        return tuple(np.stack([getattr(s, name) for s in samples]) for name in ("image", "targets", "known"))

    with ThreadPoolExecutor(1, thread_name_prefix="sampling") as pool:
        ahead = [pool.submit(draw, first + i) for i in range(3)]
        step = first
        try:
            while True:
                batch = ahead.pop(0).result()
                ahead.append(pool.submit(draw, step + 3))
                yield batch
                step += 1
        finally:
            for future in ahead:
                future.cancel()


def _save(
    path: Path, step: int, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    state: dict[str, Any] = {
        "step": step,
        "model": model.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def _resume(path: Path, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    state = torch.load(path, weights_only=True, map_location="cpu")
    model.load_state_dict(state["model"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    log.info("resuming from %s at step %d", path, state["step"])
    return int(state["step"])
