"""Teaching a flood-filling network to grow objects: ``cloudseg train`` with ``architecture = "ffn"``.

After google/ffn (Januszewski et al. 2018, Nature Methods 15, 605); see :mod:`cloudseg.training.flood_examples` and
:mod:`cloudseg.training.flood_views`. Each place that the field of view comes to is one step.
"""

from __future__ import annotations

import importlib.metadata
import math
import time
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from cloudseg.errors import ConflictError, ModelError, SpecError
from cloudseg.models.arguments import FFNArguments
from cloudseg.models.ffn import FloodFillingNetwork
from cloudseg.models.package import (
    SPEC_NAME,
    ModelDescription,
    ModelSpec,
    Normalisation,
    OpenObjects,
    Provenance,
    load_spec,
    load_weights,
)
from cloudseg.models.predict import pick_precision, set_weights
from cloudseg.ops.flood import FloodRule
from cloudseg.specs import FrozenModel, canonical_json
from cloudseg.training.blocks import MakePhantom, OpenVolume, check_apart, load_block, phantom_blocks
from cloudseg.training.checkpoint import read_checkpoint, write_checkpoint
from cloudseg.training.config import LabelledVolume, PhantomVolumes, override
from cloudseg.training.convert import package_checkpoint
from cloudseg.training.crew import Crew
from cloudseg.training.flood_examples import FloodSampler
from cloudseg.training.flood_views import MovingViews
from cloudseg.training.history import History, Progress
from cloudseg.training.sampling import LabelledBlock
from cloudseg.training.schedule import LoopOptions, make_optimizer, rate
from cloudseg.volumes import open_objects
from cloudseg.volumes import open_volume as open_any_volume


class FloodNetworkSettings(FrozenModel):
    """``[network]``: what is trained, and for which voxels."""

    architecture: Literal["ffn"]
    arguments: FFNArguments = FFNArguments()
    voxel_size_nm: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    voxel_size_tolerance: Annotated[float, Field(ge=0, lt=1)] = 0.25
    normalisation: Normalisation = Normalisation(mean=128.0, deviation=33.0)


class FloodSampling(FrozenModel):
    """``[sampling]``: objects of fewer than ``min_size_vx`` voxels are no centres; ``flips`` turns and mirrors."""

    min_size_vx: PositiveInt = 10_000
    flips: bool = True


class FloodTraining(FrozenModel):
    """A training file whose network is of architecture ``ffn``.

    Attributes
    ----------
    name, output, checkpoint, start_from, licence, recipe, isotropic, log
        As in any training file.
    network, sampling
        See :class:`FloodNetworkSettings` and :class:`FloodSampling`.
    schedule
        As in any training file; a step is one place of ``batch_size`` examples. ``accumulate`` is not used.
    volume, phantom
        What to learn from. Labels must be dense: a voxel without an object is none to grow into.
    validation, validate_every, validation_examples
        What to measure the loss on, steps between two measurements, and how many examples are grown for one.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    output: Annotated[str, Field(min_length=1)]
    checkpoint: Path
    start_from: str | None = None
    licence: str
    recipe: str = ""
    isotropic: bool = True
    log: Path | None = None
    network: FloodNetworkSettings
    schedule: LoopOptions
    sampling: FloodSampling = FloodSampling()
    volume: tuple[LabelledVolume, ...] = ()
    phantom: tuple[PhantomVolumes, ...] = ()
    validation: tuple[LabelledVolume, ...] = ()
    validate_every: PositiveInt = 500
    validation_examples: PositiveInt = 16

    @model_validator(mode="after")
    def _it_can_be_done(self) -> Self:
        if not self.volume and not self.phantom:
            raise ValueError("there is nothing to learn from: add a [[volume]] or a [[phantom]] table")
        if self.schedule.accumulate != 1:
            raise ValueError(
                f"schedule.accumulate is {self.schedule.accumulate}, but a flood-filling network takes one pass a "
                "step: raise batch_size instead"
            )
        size = self.network.voxel_size_nm
        if self.isotropic and max(size) > 1.1 * min(size):
            raise ValueError(
                f"isotropic = true exchanges z with x and y, but the voxels are {size} nm: set isotropic = false"
            )
        return self

    @property
    def log_folder(self) -> Path:
        """Where the log goes."""
        return self.log or self.checkpoint.with_name(self.checkpoint.stem + "_log")

    @property
    def rule(self) -> FloodRule:
        """How the field of view moves."""
        return FloodRule(fov=self.network.arguments.fov, deltas=self.network.arguments.deltas)

    def fingerprint(self) -> str:
        """Return the text of all settings that decide the weights."""
        how = {"name", "output", "checkpoint", "licence", "recipe", "log", "validation", "validate_every"}
        settings = self.model_dump(mode="json", exclude={*how, "validation_examples"})
        for key in ("checkpoint_every", "device", "n_samplers"):
            settings["schedule"].pop(key)
        settings["network"].pop("voxel_size_tolerance")
        return canonical_json(settings)

    def description(self) -> ModelDescription:
        """Return what the package will say."""
        data = [f"{v.image} with {v.labels}, box {v.box or 'all'}" for v in self.volume]
        data += [f"{p.count} phantom(s) of {p.tissue}, {p.shape} from seed {p.seed}" for p in self.phantom]
        return ModelDescription(
            name=self.name,
            output="object",
            **{name: getattr(self.network, name) for name in FloodNetworkSettings.model_fields},
            patch_shape=self.network.arguments.fov,
            context=(0, 0, 0),
            blend=(0, 0, 0),
            training=Provenance(
                data=tuple(data),
                n_steps=0,
                seed=self.schedule.seed,
                recipe=self.recipe,
                software={n: importlib.metadata.version(n) for n in ("cloudseg", "torch", "numpy")},
            ),
            licence=self.licence,
        )

    def sampler(self, blocks: list[LabelledBlock], *, flips: bool) -> FloodSampler:
        """Return what draws examples."""
        arguments, norm = self.network.arguments, self.network.normalisation
        return FloodSampler(
            blocks=blocks,
            fov=arguments.fov,
            deltas=arguments.deltas,
            mean=norm.mean,
            deviation=norm.deviation,
            min_size_vx=self.sampling.min_size_vx,
            isotropic=self.isotropic,
            flips=flips,
        )


def load_flood_training(path: Path, *, overrides: Iterable[str] = ()) -> FloodTraining | None:
    """Read a training file; None if its network is of another architecture, or it is not there."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError):
        return None  # whoever reads training files of other networks says what is wrong
    for text in overrides:
        override(data, text)
    network = data.get("network")
    if not isinstance(network, dict) or network.get("architecture") != "ffn":
        return None
    return FloodTraining.load(data, where=str(path))


def fit_flood(
    config: FloodTraining,
    *,
    make_phantom: MakePhantom,
    report: Callable[[Progress], None],
    open_volume: OpenVolume = open_any_volume,
    objects: OpenObjects = open_objects,
) -> ModelSpec:
    """Train, or go on training from the checkpoint, then write the package.

    Raises
    ------
    ConflictError
        If the output holds a package that this run did not begin, or the checkpoint is of another run.
    SpecError
        If the data do not fit, the loss runs away, or several processes were started.
    """
    if not config.checkpoint.exists() and objects(config.output).exists(SPEC_NAME):
        raise ConflictError(
            f"{config.output} holds a model package already, and there is no checkpoint {config.checkpoint} to go on "
            "from; give another output, or delete the package"
        )
    crew = Crew.join(config.schedule.device)
    if crew.size > 1:
        crew.part()
        raise SpecError(
            f"{crew.size} processes were started, but a flood-filling network is trained by one: leave torchrun out"
        )
    description = config.description()
    blocks = [load_block(v, description=description, open_volume=open_volume) for v in config.volume]
    held_back = [load_block(v, description=description, open_volume=open_volume) for v in config.validation]
    check_apart(
        list(zip(config.volume, blocks, strict=True)), list(zip(config.validation, held_back, strict=True))
    )
    for phantom in config.phantom:
        size = config.network.voxel_size_nm
        blocks.extend(phantom_blocks(phantom, voxel_size_nm=size, make_phantom=make_phantom))
    torch.manual_seed(config.schedule.seed)
    network = FloodFillingNetwork(**config.network.arguments.model_dump())
    if config.start_from is not None:
        spec = load_spec(config.start_from, objects=objects)
        set_weights(network, load_weights(config.start_from, spec, objects=objects), where=config.start_from)
    views = MovingViews(
        config.sampler(blocks, flips=config.sampling.flips),
        config.rule,
        n=config.schedule.batch_size,
        seed=config.schedule.seed,
    )
    judged = config.sampler(held_back, flips=False) if held_back else None
    config.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    run = _Run.begin(network, views, config, device=crew.device)
    history = History(config.log_folder, first_step=run.step)
    started = time.monotonic()
    try:
        while run.step < config.schedule.n_steps:
            step = run.step
            loss = run.learn()
            last = run.step == config.schedule.n_steps
            measured = judged is not None and (last or run.step % config.validate_every == 0)
            held = run.validation(judged) if measured and judged is not None else None
            at = config.schedule.learning_rate * rate(config.schedule, step)
            progress = Progress(step, loss, time.monotonic() - started, at, 0.0, held)
            history.add(progress)
            report(progress)
            if last or run.step % config.schedule.checkpoint_every == 0:
                run.save()
    finally:
        history.close()
    return package_checkpoint(config.checkpoint, description, config.output, objects=objects)


@dataclass
class _Run:
    """All that decides how training goes on."""

    network: FloodFillingNetwork
    average: torch.optim.swa_utils.AveragedModel
    optimizer: torch.optim.Optimizer
    views: MovingViews
    config: FloodTraining
    device: torch.device
    half: bool
    step: int = 0

    @classmethod
    def begin(
        cls, network: FloodFillingNetwork, views: MovingViews, config: FloodTraining, *, device: torch.device
    ) -> Self:
        """Return a run at its beginning, or at its checkpoint."""
        options = config.schedule
        kind: Literal["cpu", "cuda"] = "cuda" if device.type == "cuda" else "cpu"
        network = network.to(device).to(memory_format=torch.channels_last_3d).train()  # type: ignore[call-overload]
        average = torch.optim.swa_utils.AveragedModel(
            network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(options.average_decay)
        )
        half = pick_precision(options.precision, device=kind) == "bfloat16"
        run = cls(network, average, make_optimizer(network, options), views, config, device, half)
        if config.checkpoint.exists():
            run.resume(config.checkpoint)
        return run

    def resume(self, path: Path) -> None:
        """Take up a checkpoint."""
        state = read_checkpoint(path)
        if state.get("fingerprint") != self.config.fingerprint():
            raise ConflictError(
                f"checkpoint {path} belongs to a run with other settings; give another checkpoint file, delete this "
                "one, or bring the settings back"
            )
        try:
            self.network.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise ModelError(f"checkpoint {path} belongs to another network: {error}") from error
        self.views.restore({name: tensor.numpy() for name, tensor in state["views"].items()})
        self.step = int(state["step"])

    def save(self) -> None:
        """Write a checkpoint."""
        write_checkpoint(
            self.config.checkpoint,
            {
                "step": self.step,
                "model": self.network.state_dict(),
                "average": self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "views": {name: torch.from_numpy(array) for name, array in self.views.state().items()},
                "fingerprint": self.config.fingerprint(),
            },
        )

    def learn(self) -> float:
        """Take one step and move on; return its loss."""
        options = self.config.schedule
        for group in self.optimizer.param_groups:
            group["lr"] = options.learning_rate * rate(options, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        logits, loss = self._pass(self.network, self.views)
        loss.backward()
        norm = float(nn.utils.clip_grad_norm_(self.network.parameters(), options.clip_norm))
        value = float(loss.detach())
        if not (math.isfinite(value) and math.isfinite(norm)):
            path = self.config.checkpoint
            kept = (
                f"the last good state is in {path}" if path.exists() else "no checkpoint had been written yet"
            )
            seen = "; ".join(self.views.where)
            raise SpecError(
                f"loss and gradient became {value} and {norm} at step {self.step}; lower learning_rate (now "
                f"{options.learning_rate}), and look at what it was learning from: {seen}; {kept}"
            )
        self.optimizer.step()
        self.average.update_parameters(self.network)
        self.views.move(logits.detach().float().cpu().numpy())
        self.step += 1
        return value

    def validation(self, sampler: FloodSampler) -> float:
        """Return the mean loss of the averaged network over the same examples each time."""
        network = self.average.module
        assert isinstance(network, FloodFillingNetwork)
        views = MovingViews(sampler, self.config.rule, n=1, seed=0)
        losses: list[float] = []
        network.eval()
        with torch.inference_mode():
            while views.n_examples < self.config.validation_examples:
                logits, loss = self._pass(network, views)
                losses.append(float(loss))
                views.move(logits.float().cpu().numpy())
        return float(np.mean(losses))

    def _pass(self, network: FloodFillingNetwork, views: MovingViews) -> tuple[Tensor, Tensor]:
        """Return the logits ``(n, x, y, z)`` and their loss."""
        arrays: tuple[Any, ...] = views.views()
        x, wanted, known = (torch.from_numpy(array).to(self.device) for array in arrays)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            logits = network(x)[:, 0]
        each = nn.functional.binary_cross_entropy_with_logits(logits.float(), wanted, reduction="none")
        return logits, (each * known).sum() / known.sum().clamp(min=1)
