"""The training loop: seeded, checkpointed, with data loading hidden behind the network."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import nn

from cloudseg.errors import ConflictError, ModelError, SpecError
from cloudseg.models.predict import Precision, pick_precision
from cloudseg.specs import FrozenModel
from cloudseg.training.checkpoint import read_checkpoint
from cloudseg.training.loss import balanced_bce
from cloudseg.training.sampling import Sample, Sampler

log = logging.getLogger(__name__)


class LoopOptions(FrozenModel):
    """How long and how fast to train.

    Attributes
    ----------
    n_steps, batch_size
        Steps, and patches per step.
    learning_rate, weight_decay
        Of AdamW; the rate warms up over 50 steps and falls along half a cosine.
    average_decay
        Decay of the running average of the weights; the average is what is kept.
    seed
        Of the first weights and of every draw.
    checkpoint_every
        Steps between two checkpoints.
    device
        ``cpu`` or ``cuda``.
    precision
        Of the multiplications; ``auto`` is bfloat16 where the device computes in it natively, which is several times
        faster. Weights, normalisation and loss are float32 all the same.
    """

    n_steps: PositiveInt
    batch_size: PositiveInt = 1
    learning_rate: PositiveFloat = 2e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    average_decay: Annotated[float, Field(gt=0, lt=1)] = 0.997
    seed: Annotated[int, Field(ge=0)] = 0
    checkpoint_every: PositiveInt = 200
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Precision = "auto"


@dataclass(frozen=True, slots=True)
class Progress:
    """One line of the training log: seconds since this process began, and the validation loss if it was measured."""

    step: int
    loss: float
    seconds: float
    validation: float | None = None


def train(
    model: nn.Module,
    sampler: Sampler,
    options: LoopOptions,
    *,
    checkpoint: Path,
    report: Callable[[Progress], None],
    validate: Callable[[nn.Module], float] | None = None,
    validate_every: int = 200,
    fingerprint: str = "",
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
    validate
        Returns a loss of the averaged network (in evaluation mode) on data held back, or None.
    validate_every
        Steps between two validations; the last step is always validated.
    fingerprint
        Stored in the checkpoint; a checkpoint with another one is not resumed from. Empty: not checked.

    Raises
    ------
    ConflictError
        If the checkpoint is of another run.
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
    first = _resume(checkpoint, model, average, optimizer, fingerprint) if checkpoint.exists() else 0
    half = pick_precision(options.precision, device=options.device) == "bfloat16"
    started = time.monotonic()
    for step, batch in zip(
        range(first, options.n_steps), _batches(sampler, options, first=first), strict=False
    ):
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * _schedule(step, options.n_steps)
        image, targets, known = (torch.from_numpy(a).to(device, non_blocking=True) for a in batch)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            logits = model(image)
        loss = balanced_bce(logits.float(), targets.float(), known.float())
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
        last = step + 1 == options.n_steps
        held_back = None
        if validate is not None and (last or (step + 1) % validate_every == 0):
            held_back = validate(average.module.eval())
        report(Progress(step, value, time.monotonic() - started, held_back))
        if last or (step + 1) % options.checkpoint_every == 0:
            _save(checkpoint, step + 1, model, average, optimizer, fingerprint)
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
    path: Path,
    step: int,
    model: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    fingerprint: str,
) -> None:
    state: dict[str, Any] = {
        "step": step,
        "model": model.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
        "fingerprint": fingerprint,
    }
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def _resume(
    path: Path, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, fingerprint: str
) -> int:
    state = read_checkpoint(path)
    theirs = state.get("fingerprint", "")
    if fingerprint and theirs and theirs != fingerprint:
        raise ConflictError(
            f"checkpoint {path} belongs to a run with other settings ({_difference(theirs, fingerprint)}); "
            "give another checkpoint file, delete this one, or bring the settings back"
        )
    try:
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise ModelError(f"checkpoint {path} belongs to another network: {error}") from error
    log.info("resuming from %s at step %d", path, state["step"])
    return int(state["step"])


def _difference(theirs: str, ours: str) -> str:
    """Name the top-level settings that differ; both texts are JSON objects."""
    a, b = json.loads(theirs), json.loads(ours)
    return ", ".join(sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key)))
