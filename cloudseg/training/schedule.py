"""How long and how fast to train: steps, optimizer, and the course of the learning rate."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import nn

from cloudseg.models.predict import Precision
from cloudseg.specs import FrozenModel


class LoopOptions(FrozenModel):
    """``[schedule]``: how long and how fast to train.

    Attributes
    ----------
    n_steps, batch_size, accumulate
        Steps; patches per pass; passes per step. With several processes each makes its own passes, so a step learns
        from ``batch_size * accumulate * processes`` patches.
    optimizer
        ``adamw``, ``adam``, or ``sgd`` (momentum 0.9).
    learning_rate, weight_decay
        Of the optimizer.
    course
        How the rate falls: half a ``cosine`` down to ``final_rate`` of it, ``constant``, or ``poly``:
        ``(1 - step / n_steps) ** power`` (DeepEM3D: 0.8).
    warm_up
        Steps in which the rate rises from 0.
    final_rate, power
        See ``course``.
    clip_norm
        Longest gradient; longer ones are scaled down.
    average_decay
        Decay of the running average of the weights; the average is what is kept.
    seed
        Of the first weights and of every draw.
    checkpoint_every
        Steps between two checkpoints.
    device
        ``cpu``, ``cuda``, or ``auto``: a CUDA GPU if there is one.
    precision
        Of the multiplications; ``auto`` is bfloat16 where the device computes in it natively, which is several times
        faster. Weights, normalisation and loss are float32 all the same.
    n_samplers
        Threads that draw patches ahead of the network; how many makes no difference to what is drawn.
    """

    n_steps: PositiveInt
    batch_size: PositiveInt = 1
    accumulate: PositiveInt = 1
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    learning_rate: PositiveFloat = 2e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    course: Literal["cosine", "constant", "poly"] = "cosine"
    warm_up: Annotated[int, Field(ge=0)] = 50
    final_rate: Annotated[float, Field(ge=0, le=1)] = 0.02
    power: PositiveFloat = 0.8
    clip_norm: PositiveFloat = 1.0
    average_decay: Annotated[float, Field(gt=0, lt=1)] = 0.997
    seed: Annotated[int, Field(ge=0)] = 0
    checkpoint_every: PositiveInt = 200
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Precision = "auto"
    n_samplers: PositiveInt = 2


def rate(options: LoopOptions, step: int) -> float:
    """Return the learning rate at ``step`` as a share of the highest."""
    warm = min(1.0, (step + 1) / options.warm_up) if options.warm_up else 1.0
    done = step / options.n_steps
    if options.course == "constant":
        return warm
    if options.course == "poly":
        return warm * (1.0 - done) ** options.power
    return warm * (options.final_rate + (1 - options.final_rate) * 0.5 * (1 + math.cos(math.pi * done)))


def make_optimizer(model: nn.Module, options: LoopOptions) -> torch.optim.Optimizer:
    """Return the optimizer that ``options`` name."""
    lr, decay = options.learning_rate, options.weight_decay
    if options.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=lr, weight_decay=decay, momentum=0.9)
    if options.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=lr, weight_decay=decay)
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=decay)
