"""The training loop: seeded, checkpointed, with data loading hidden behind the network."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cloudseg.errors import ConflictError, ModelError, SpecError
from cloudseg.models.layers import VoxelNetwork
from cloudseg.models.predict import pick_precision
from cloudseg.training.batches import Batch, Batches
from cloudseg.training.checkpoint import read_checkpoint, write_checkpoint
from cloudseg.training.crew import Crew
from cloudseg.training.history import Progress
from cloudseg.training.judge import Verdict
from cloudseg.training.loss import Loss
from cloudseg.training.memory import free_memory, is_out_of_memory, largest_patch, trial_step
from cloudseg.training.sampling import Sampler
from cloudseg.training.schedule import LoopOptions, make_optimizer, rate

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Watch:
    """What is measured on data held back, and when.

    Attributes
    ----------
    validate, validate_every
        Returns the loss of the averaged network, or None; steps between two measurements.
    judge, judge_every
        Returns its segmentation, or None; steps between two measurements.
    patience
        Stop after so many segmentations in a row that are no better than the best; None: never.
    """

    validate: Callable[[nn.Module], float] | None = None
    validate_every: int = 200
    judge: Callable[[nn.Module], Verdict] | None = None
    judge_every: int = 500
    patience: int | None = None


@dataclass
class _State:
    """All that decides how training goes on."""

    model: nn.Module
    average: torch.optim.swa_utils.AveragedModel
    optimizer: torch.optim.Optimizer
    step: int = 0
    best: dict[str, Any] = field(default_factory=dict)
    n_worse: int = 0
    stopped: bool = False

    def save(self, path: Path, fingerprint: str) -> None:
        write_checkpoint(
            path,
            {
                "step": self.step,
                "model": self.model.state_dict(),
                "average": self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "best": self.best,
                "n_worse": self.n_worse,
                "stopped": self.stopped,
                "random": torch.get_rng_state(),
                "fingerprint": fingerprint,
            },
        )

    def resume(self, path: Path, fingerprint: str) -> None:
        state = read_checkpoint(path)
        theirs = state.get("fingerprint", "")
        if fingerprint and theirs and theirs != fingerprint:
            raise ConflictError(
                f"checkpoint {path} belongs to a run with other settings ({_difference(theirs, fingerprint)}); "
                "give another checkpoint file, delete this one, or bring the settings back"
            )
        try:
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise ModelError(f"checkpoint {path} belongs to another network: {error}") from error
        self.step = int(state["step"])
        self.best = state.get("best", {})
        self.n_worse = int(state.get("n_worse", 0))
        self.stopped = bool(state.get("stopped", False))
        if "random" in state:
            torch.set_rng_state(state["random"])
        log.info("resuming from %s at step %d", path, self.step)

    def is_over(self, n_steps: int) -> bool:
        """Whether nothing is left to do."""
        return self.stopped or self.step >= n_steps

    def learn_of(self, verdict: Verdict, *, patience: int | None) -> None:
        """Keep the average if it is the best so far; stop after too many that were not."""
        if not self.best or verdict.score < self.best["score"]:
            average = {name: t.detach().cpu().clone() for name, t in self.average.state_dict().items()}
            self.best = {
                "score": verdict.score,
                "threshold": verdict.threshold,
                "step": self.step,
                "average": average,
            }
            self.n_worse = 0
        else:
            self.n_worse += 1
            self.stopped = patience is not None and self.n_worse >= patience


class _Heads(nn.Module):
    """A network whose call returns all that has a loss."""

    def __init__(self, network: VoxelNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(b, c, x, y, z)`` to logits, the output first."""
        return self.network.all_logits(x)


def train(
    model: VoxelNetwork,
    sampler: Sampler,
    options: LoopOptions,
    *,
    loss: Loss,
    checkpoint: Path,
    report: Callable[[Progress], None],
    watch: Watch | None = None,
    crew: Crew | None = None,
    fingerprint: str = "",
) -> nn.Module:
    """Train ``model`` and return the running average of its weights.

    Each example is drawn from a seed of its own, so a run that is stopped and started again from ``checkpoint`` sees
    the same examples as one that was not.

    Parameters
    ----------
    model
        The network; its parameters are changed in place.
    sampler
        Where examples come from.
    options
        Steps, rates, seed.
    loss
        What is made small.
    checkpoint
        File that is written every ``checkpoint_every`` steps (atomically) and resumed from if it exists.
    report
        Called after each step, in the first process.
    watch
        What to measure on data held back.
    crew
        The processes that train together; None: this one alone.
    fingerprint
        Stored in the checkpoint; a checkpoint with another one is not resumed from. Empty: not checked.

    Raises
    ------
    ConflictError
        If the checkpoint is of another run.
    SpecError
        If loss or gradient are not finite numbers (the last good checkpoint is kept), or memory runs out.
    """
    crew = crew or Crew.join(options.device)
    watch = watch or Watch()
    model = model.to(crew.device).to(memory_format=torch.channels_last_3d).train()  # type: ignore[call-overload]
    state = _State(
        model,
        torch.optim.swa_utils.AveragedModel(
            model,
            multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(options.average_decay),
            use_buffers=True,
        ),
        make_optimizer(model, options),
    )
    if checkpoint.exists():
        state.resume(checkpoint, fingerprint)
    if state.is_over(options.n_steps):
        return _averaged(state)
    heads = crew.wrap(_Heads(model))
    half = pick_precision(options.precision, device=crew.kind) == "bfloat16"
    work = _Work(state, heads, loss, options, crew, half, checkpoint)
    started = time.monotonic()
    with Batches(sampler, options, crew, first=state.step) as batches:
        while not state.is_over(options.n_steps):
            step = state.step
            try:
                value, waited_s = work.step(batches)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                n_channels = sum(t.n_channels for t in sampler.targets)
                message = work.out_of_memory(sampler.patch_shape, n_channels=n_channels)
                raise SpecError(message) from None
            state.step = step + 1
            last = state.step == options.n_steps
            held_back, verdict = _measure(state, watch, crew, last=last)
            if crew.is_first:
                seconds = time.monotonic() - started
                at = options.learning_rate * rate(options, step)
                report(Progress(step, value, seconds, at, waited_s, held_back, verdict))
            if state.is_over(options.n_steps) or state.step % options.checkpoint_every == 0:
                work.save(fingerprint)
    return _averaged(state)


def _averaged(state: _State) -> nn.Module:
    averaged: nn.Module = state.average.module
    return averaged.eval()


def _measure(state: _State, watch: Watch, crew: Crew, *, last: bool) -> tuple[float | None, Verdict | None]:
    """Measure, if it is time, in the first process; tell all whether to stop."""
    validated = watch.validate is not None and (last or state.step % watch.validate_every == 0)
    judged = watch.judge is not None and (last or state.step % watch.judge_every == 0)
    held_back = verdict = None
    if crew.is_first and validated and watch.validate is not None:
        held_back = watch.validate(state.average.module.eval())
    if crew.is_first and judged and watch.judge is not None:
        verdict = watch.judge(state.average.module.eval())
        state.learn_of(verdict, patience=watch.patience)
    if judged:
        state.stopped = bool(crew.told(float(state.stopped)))
    return held_back, verdict


@dataclass
class _Work:
    """One step, and what to say when it fails."""

    state: _State
    heads: nn.Module
    loss: Loss
    options: LoopOptions
    crew: Crew
    half: bool
    checkpoint: Path

    def step(self, batches: Batches) -> tuple[float, float]:
        """Take one step; return its loss and the seconds that it waited for examples."""
        state, options = self.state, self.options
        for group in state.optimizer.param_groups:
            group["lr"] = options.learning_rate * rate(options, state.step)
        state.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.crew.device)
        waited_s, seen = 0.0, []
        for i in range(options.accumulate):
            before = time.monotonic()
            batch = next(batches)
            waited_s += time.monotonic() - before
            value = self._backward(batch, last=i + 1 == options.accumulate)
            seen.append((value, batch.where))
            total += value / options.accumulate
        mean = float(self.crew.mean(total))
        if not math.isfinite(mean):
            raise SpecError(self._not_finite("the loss", mean, seen))
        norm = float(nn.utils.clip_grad_norm_(state.model.parameters(), options.clip_norm))
        if not math.isfinite(norm):
            raise SpecError(self._not_finite("the gradient", norm, seen))
        state.optimizer.step()
        self.crew.settle(state.model.buffers())
        state.average.update_parameters(state.model)
        return mean, waited_s

    def _backward(self, batch: Batch, *, last: bool) -> Tensor:
        """Add the gradients of one batch; return its loss. Processes exchange them at the last batch only."""
        alone = contextlib.nullcontext() if last or self.crew.size == 1 else self.heads.no_sync()  # type: ignore[operator]
        device = self.crew.device
        with alone:
            image, values, known = (
                array.to(device, non_blocking=True) for array in (batch.image, batch.targets, batch.known)
            )
            with torch.autocast(device.type, torch.bfloat16, enabled=self.half):
                logits = self.heads(image)
            value = self.loss(logits, values, known)
            (value / self.options.accumulate).backward()
        return value.detach()

    def save(self, fingerprint: str) -> None:
        """Write a checkpoint, unless the weights have run away: then the last good one stays."""
        if all(bool(torch.isfinite(p).all()) for p in self.state.model.parameters()):
            if self.crew.is_first:
                self.state.save(self.checkpoint, fingerprint)
            return
        raise SpecError(self._not_finite("a weight", math.nan, []))

    def _not_finite(self, what: str, value: float, seen: list[tuple[Tensor, tuple[str, ...]]]) -> str:
        bad = [where for tensor, names in seen if not math.isfinite(float(tensor)) for where in names]
        shown = bad or [where for _, names in seen for where in names]
        if self.crew.size > 1 and not bad:
            shown = [*shown, f"(as process {self.crew.rank} of {self.crew.size} sees it)"]
        kept = (
            f"the last good state is in {self.checkpoint}"
            if self.checkpoint.exists()
            else f"no checkpoint had been written yet (checkpoint_every is {self.options.checkpoint_every})"
        )
        coarse = ", try schedule.precision = 'float32' (now bfloat16)" if self.half else ""
        return (
            f"{what} became {value} at step {self.state.step}; lower learning_rate (now {self.options.learning_rate})"
            f"{coarse}, and look at what it was learning from: {'; '.join(shown) or 'unknown'}; {kept}"
        )

    def out_of_memory(self, shape: tuple[int, int, int], *, n_channels: int) -> str:
        """Say that memory ran out, and for which patch it is enough."""
        options, crew = self.options, self.crew
        self.state.optimizer.zero_grad(set_to_none=True)
        free_memory()
        network = _Heads(self.state.model)  # type: ignore[arg-type]
        step = trial_step(
            network,
            self.loss,
            device=crew.device,
            batch_size=options.batch_size,
            n_channels=n_channels,
            half=self.half,
        )
        multiple = self.state.model.multiple
        fits = largest_patch(step, shape, multiple=multiple)  # type: ignore[arg-type]
        advice = (
            f"patch_shape = {list(fits)} fits (tried)"
            if fits
            else "no smaller patch fits either: take a smaller network, or a device with more memory"
        )
        if options.batch_size > 1:
            advice += (
                f"; or set batch_size = 1 and accumulate = {options.batch_size * options.accumulate}, "
                "which learns the same from less memory"
            )
        kept = f"; the last checkpoint is {self.checkpoint}" if self.checkpoint.exists() else ""
        return (
            f"{crew.device} ran out of memory at step {self.state.step} with patch_shape = {list(shape)} and "
            f"batch_size = {options.batch_size}: {advice}{kept}"
        )


def _difference(theirs: str, ours: str) -> str:
    """Name the top-level settings that differ; both texts are JSON objects."""
    a, b = json.loads(theirs), json.loads(ours)
    return ", ".join(sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key)))
