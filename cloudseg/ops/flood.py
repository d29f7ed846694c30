"""Flood filling: one object after the other grows from its seed, wherever the network says that it goes on.

The algorithm is that of google/ffn (Januszewski et al. 2018, Nature Methods 15, 605), step by step: with waves of one
field of view its result is voxel for voxel the published one. A field of view moves to the best voxel on each side of
it; an object is what lies above a threshold in the end; the first one to come keeps a voxel. The network is a function
on arrays that the caller brings.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from cloudseg.errors import SpecError
from cloudseg.geometry import XYZ
from cloudseg.ops.flood_kernels import cut, moves, put

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

Grow = Callable[[Floats], Floats]
"""A network: ``(b, 2, x, y, z)`` grey levels and logits to new logits ``(b, x, y, z)``, which the caller may change."""

_NOWHERE: XYZ = (-1, -1, -1)


@dataclass(frozen=True, slots=True)
class FloodRule:
    """How objects grow. Probabilities are of a voxel to be in the object.

    Attributes
    ----------
    fov, deltas
        Edges of the field of view (odd), and how far it moves in one step.
    start, pad
        Probability of the seed, and of a voxel that was never visited.
    move, segment
        Probability from which on the field of view moves to a voxel, and from which on a voxel is of the object.
    clearance
        Nothing starts where a segment lies within so many voxels.
    min_size_vx
        Smaller objects are dropped.
    freeze
        Once more than this share of a field of view reaches ``move``, voxels that were voted out can only fall there.
        0 is the published setting; None: never.
    wave
        How many fields of view are computed from one state of the object. 1 is the published algorithm.
    """

    fov: XYZ = (33, 33, 33)
    deltas: XYZ = (8, 8, 8)
    start: float = 0.95
    pad: float = 0.05
    move: float = 0.9
    segment: float = 0.6
    clearance: XYZ = (1, 1, 1)
    min_size_vx: int = 1000
    freeze: float | None = 0.0
    wave: int = 1

    def __post_init__(self) -> None:
        for axis, edge, delta in zip("xyz", self.fov, self.deltas, strict=True):
            if edge % 2 == 0 or not 0 < delta <= edge // 2:
                raise SpecError(
                    f"a field of view needs an odd edge and moves of 1 to half of it; on {axis} it has {edge} voxels "
                    f"and moves by {delta}"
                )

    @property
    def half(self) -> XYZ:
        """Voxels of the field of view on each side of its centre."""
        x, y, z = self.fov
        return (x // 2, y // 2, z // 2)


@dataclass(slots=True)
class Counts:
    """What happened: fields of view computed, objects begun, and how those ended that are not kept."""

    steps: int = 0
    waves: int = 0
    fills: int = 0
    objects: int = 0
    weak_seeds: int = 0
    too_small: int = 0
    stopped: int = 0
    shared_vx: int = 0


@dataclass(slots=True)
class _Growing:
    """The object that is growing now."""

    seed: XYZ
    low: XYZ
    high: XYZ
    steps: int = 0
    queue: deque[XYZ] = field(default_factory=deque)
    done: set[XYZ] = field(default_factory=set)


class Canvas:
    """A volume in which objects grow.

    ``origins`` has a row per object: id, seed, steps. ``overlaps`` says how many voxels of which older segment it would
    have taken, and ``seen`` how many of that segment's voxels it looked at.

    Parameters
    ----------
    image
        ``(x, y, z)`` normalised grey levels.
    rule
        How objects grow.
    grow
        The network.
    closed
        Voxels where no field of view may be centred; objects spill into them by half a field of view.
    no_seeds
        Voxels where nothing starts.
    labels
        Segments that exist already, 0 where there is none; they stay.

    Raises
    ------
    SpecError
        If the volume is smaller than the field of view, or a mask has another shape.
    """

    def __init__(
        self,
        image: npt.NDArray[Any],
        rule: FloodRule,
        grow: Grow,
        *,
        closed: Mask | None = None,
        no_seeds: Mask | None = None,
        labels: npt.NDArray[Any] | None = None,
    ) -> None:
        shape = check_shape(image.shape, rule)
        for name, mask in (("closed", closed), ("no_seeds", no_seeds), ("labels", labels)):
            if mask is not None and mask.shape != shape:
                raise SpecError(
                    f"{name} has shape {mask.shape}, but the image has {shape}: both must be the same"
                )
        self.rule, self.grow, self.shape = rule, grow, shape
        self.image = np.asfortranarray(image, np.float32)
        self.closed, self.no_seeds = closed, no_seeds
        self.segments = (
            np.zeros(shape, np.int32, order="F") if labels is None else np.array(labels, np.int32, order="F")
        )
        self.logits = np.full(shape, np.nan, np.float32, order="F")
        self.age = np.zeros(shape, np.int32, order="F")
        self.counts = Counts()
        self.origins: list[tuple[int, int, int, int, int]] = []
        self.overlaps: list[tuple[int, int, int]] = []
        self.seen: list[tuple[int, int, int]] = []
        self.n_labels = int(self.segments.max(initial=0))
        self.n_deleted = 0
        self._next = 0
        self._growing: _Growing | None = None
        self._age = np.zeros(shape, np.int32, order="F")
        self._views = np.empty((rule.wave, 2, *rule.fov), np.float32)
        self._scores, self._offsets = np.empty(6, np.float32), np.empty((6, 3), np.int64)
        self._move, self._segment = _logit(rule.move), _logit(rule.segment)
        self._start, self._pad = _logit(rule.start), _logit(rule.pad)
        self._freeze = -1.0 if rule.freeze is None else float(rule.freeze)

    def run(self, seeds: npt.NDArray[np.int64], *, pause: Callable[[], bool] | None = None) -> bool:
        """Grow an object from each of ``seeds`` in turn; return whether all are done.

        Parameters
        ----------
        seeds
            ``(n, 3)``, x, y, z. Those without a full field of view round them are passed over.
        pause
            Asked after every wave; where it says yes, this returns False, and the next call goes on from there.
        """
        while self._next < len(seeds):
            if self._growing is None:
                x, y, z = (int(v) for v in seeds[self._next])
                if not self._may_start((x, y, z)):
                    self._next += 1
                    continue
                self._begin((x, y, z))
            if not self._fill(pause):
                return False
            self._next += 1
        return True

    @property
    def threshold(self) -> np.float32:
        """The logit from which on a voxel is of an object."""
        return self._segment

    @property
    def n_seeds_done(self) -> int:
        """How many seeds were taken, or passed over."""
        return self._next

    def labels(self) -> npt.NDArray[np.uint64]:
        """Return the segments, ``(x, y, z)``; 0: none."""
        return np.maximum(self.segments, 0).astype(np.uint64)

    # -- one object

    def grow_from(self, seed: XYZ) -> int:
        """Let one object grow from ``seed`` and leave it in :attr:`logits`, uncommitted; return its steps.

        :attr:`n_deleted` counts how often a voxel that was in the object (at 0.8) fell out of it (below 0.5).

        Raises
        ------
        SpecError
            If the field of view round the seed does not lie in the volume.
        """
        if not self._has_full_view(seed):
            raise SpecError(
                f"the seed {seed} lies outside, or nearer than {self.rule.half} voxels to a side, of the volume of "
                f"{self.shape} voxels: the field of view of {self.rule.fov} does not fit round it; choose another"
            )
        self._clear()
        self._begin(seed)
        growing = self._growing
        assert growing is not None
        self.n_deleted, was_in = 0, _logit(0.8)
        while wave := self._next_wave(growing):
            box = self._box(_Growing(seed, *(_extent(wave))))
            before = self.logits[box] >= was_in
            self._step(growing, wave)
            self.n_deleted += int(np.count_nonzero(before & (self.logits[box] < 0)))
        self._growing = None
        return growing.steps

    def _begin(self, seed: XYZ) -> None:
        self.counts.fills += 1
        self.logits[seed] = self._start
        self._growing = _Growing(seed, seed, seed, queue=deque([seed]))

    def _fill(self, pause: Callable[[], bool] | None) -> bool:
        """Grow the object to its end and commit it; False: paused."""
        growing = self._growing
        assert growing is not None
        while wave := self._next_wave(growing):
            self._step(growing, wave)
            if pause is not None and pause():
                return False
        self._commit(growing)
        self._clear(growing)
        self._growing = None
        return True

    def _next_wave(self, growing: _Growing) -> list[XYZ]:
        """Take the next places from the queue, of different cells; none: the object is done."""
        wave: list[XYZ] = []
        cells: set[XYZ] = set()
        while growing.queue and len(wave) < self.rule.wave:
            place = growing.queue.popleft()
            cell = self._cell(place, growing.seed)
            if cell in growing.done or cell in cells:
                continue
            if self.logits[place] < self._move or not self._has_full_view(place) or self.segments[place] > 0:
                continue
            if self.logits[growing.seed] < self._move:
                growing.queue.clear()
                self.counts.stopped += 1
                break
            if self.closed is not None and self.closed[place]:
                continue
            wave.append(place)
            cells.add(cell)
        return wave

    def _step(self, growing: _Growing, wave: list[XYZ]) -> None:
        """Compute the fields of view of a wave from one state, and write them back in order."""
        rule, half = self.rule, self.rule.half
        views = self._views[: len(wave)]
        corners = [(x - half[0], y - half[1], z - half[2]) for x, y, z in wave]
        for view, (x, y, z) in zip(views, corners, strict=True):
            cut(self.image, self.logits, x, y, z, self._pad, view)
        self.counts.waves += 1
        for place, (x, y, z), grown in zip(wave, corners, self.grow(views), strict=True):
            growing.steps += 1
            self.counts.steps += 1
            now = growing.steps
            put(self.logits, x, y, z, grown, self._move, self._freeze, self._segment, now, self._age)
            growing.done.add(self._cell(place, growing.seed))
            growing.low = _each(min, growing.low, place)
            growing.high = _each(max, growing.high, place)
            n = moves(grown, *rule.deltas, self._move, self._scores, self._offsets)
            for dx, dy, dz in self._offsets[:n].tolist():
                growing.queue.append((place[0] + dx, place[1] + dy, place[2] + dz))

    def _commit(self, growing: _Growing) -> None:
        """Make a segment of what has grown, if it is one."""
        if growing.steps == 0:
            return
        if self.logits[growing.seed] < self._move:
            self.counts.weak_seeds += 1
            self._exclude(growing.seed)
            return
        box = self._box(growing)
        segments = self.segments[box]
        grown, seen = self.logits[box] >= self._segment, ~np.isnan(self.logits[box])
        ids, n_shared = np.unique(segments[grown & (segments > 0)], return_counts=True)
        grown &= segments <= 0
        n_vx = int(np.count_nonzero(grown))
        if n_vx < self.rule.min_size_vx:
            self.counts.too_small += 1
            self._exclude(growing.seed)
            return
        self.n_labels += 1
        segments[grown] = self.n_labels
        self.age[box][grown] = self._age[box][grown]
        self.counts.objects += 1
        self.counts.shared_vx += int(n_shared.sum())
        self.origins.append((self.n_labels, *growing.seed, growing.steps))
        self.overlaps += [(self.n_labels, int(i), int(n)) for i, n in zip(ids, n_shared, strict=True)]
        self.seen += [(self.n_labels, int(i), int(np.count_nonzero(seen & (segments == i)))) for i in ids]

    def _clear(self, growing: _Growing | None = None) -> None:
        """Forget the object: everywhere, or in the voxels that it can have touched."""
        box = (slice(None),) * 3 if growing is None else self._box(growing)
        self.logits[box] = np.nan
        self._age[box] = 0

    def _box(self, growing: _Growing) -> tuple[slice, slice, slice]:
        x, y, z = (
            slice(max(0, low - h), high + h + 1)
            for low, high, h in zip(growing.low, growing.high, self.rule.half, strict=True)
        )
        return (x, y, z)

    def _exclude(self, seed: XYZ) -> None:
        if self.segments[seed] == 0:
            self.segments[seed] = -1

    def _may_start(self, seed: XYZ) -> bool:
        if not self._has_full_view(seed) or self.segments[seed] > 0:
            return False
        if any(mask is not None and mask[seed] for mask in (self.closed, self.no_seeds)):
            return False
        near = tuple(slice(max(0, p - c), p + c + 1) for p, c in zip(seed, self.rule.clearance, strict=True))
        if (self.segments[near] > 0).any():
            self.segments[seed] = -1
            return False
        return True

    def _has_full_view(self, place: XYZ) -> bool:
        return all(h <= p < n - h for p, h, n in zip(place, self.rule.half, self.shape, strict=True))

    def _cell(self, place: XYZ, seed: XYZ) -> XYZ:
        x, y, z = ((p - s + d // 2) // d for p, s, d in zip(place, seed, self.rule.deltas, strict=True))
        return (x, y, z)

    # -- a state that can be put away

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return all that :meth:`restore` needs to go on as if nothing had happened."""
        growing = self._growing
        arrays: dict[str, npt.NDArray[Any]] = {
            "segments": self.segments,
            "age": self.age,
            "counts": np.array([getattr(self.counts, name) for name in Counts.__slots__], np.int64),
            "origins": np.array(self.origins, np.int64).reshape(-1, 5),
            "overlaps": np.array(self.overlaps, np.int64).reshape(-1, 3),
            "seen": np.array(self.seen, np.int64).reshape(-1, 3),
            "progress": np.array([self._next, self.n_labels], np.int64),
        }
        if growing is not None:
            box = self._box(growing)
            arrays |= {
                "growing": np.array(
                    [growing.seed, growing.low, growing.high, (growing.steps, 0, 0)], np.int64
                ),
                "queue": np.array(list(growing.queue), np.int64).reshape(-1, 3),
                "done": np.array(sorted(growing.done), np.int64).reshape(-1, 3),
                "logits": self.logits[box],
                "growing_age": self._age[box],
            }
        return arrays

    def restore(self, state: dict[str, npt.NDArray[Any]]) -> None:
        """Take up what :meth:`state` returned, on a canvas made of the same image and rule.

        Raises
        ------
        SpecError
            If the state is of a volume of another shape.
        """
        if state["segments"].shape != self.shape:
            raise SpecError(
                f"the state is of a volume of {state['segments'].shape} voxels, this one has {self.shape}: "
                "delete the state, and begin anew"
            )
        self._clear()
        self.segments[:], self.age[:] = state["segments"], state["age"]
        self.counts = Counts(*(int(n) for n in state["counts"]))
        self.origins = [tuple(row) for row in state["origins"].tolist()]
        self.overlaps = [tuple(row) for row in state["overlaps"].tolist()]
        self.seen = [tuple(row) for row in state["seen"].tolist()]
        self._next, self.n_labels = (int(n) for n in state["progress"])
        self._growing = None
        if "growing" in state:
            seed, low, high, (steps, _, _) = (tuple(row) for row in state["growing"].tolist())
            self._growing = growing = _Growing(seed, low, high, steps)
            growing.queue.extend(tuple(row) for row in state["queue"].tolist())
            growing.done.update(tuple(row) for row in state["done"].tolist())
            box = self._box(growing)
            self.logits[box], self._age[box] = state["logits"], state["growing_age"]


def check_shape(shape: tuple[int, ...], rule: FloodRule) -> XYZ:
    """Return the shape of a volume, or refuse one in which the field of view does not fit."""
    if len(shape) != 3:
        raise SpecError(f"an image must be (x, y, z), got shape {shape}")
    for axis, n, edge in zip("xyz", shape, rule.fov, strict=True):
        if n < edge:
            raise SpecError(
                f"the volume has {n} voxels on {axis}, fewer than the field of view of {edge}: "
                "no place in it can be looked at; take larger subvolumes"
            )
    return (shape[0], shape[1], shape[2])


def normalised(image: npt.NDArray[Any], *, mean: float, deviation: float) -> Floats:
    """Return grey levels as a network sees them: ``(grey - mean) / deviation``."""
    return np.asfortranarray((image.astype(np.float32) - np.float32(mean)) / np.float32(deviation))


def closed_by_shift(shifts: npt.NDArray[Any], *, fov: XYZ, threshold: float = 4.0) -> Mask:
    """Return where no field of view may be centred because sections slip somewhere inside of it.

    Parameters
    ----------
    shifts
        ``(2, x, y, z)``: how far each place lies from where the section before has it, along x and y, in voxels.
    fov
        Edges of the field of view.
    threshold
        Shift, along either axis, from which on a place is closed.

    Returns
    -------
    ``(x, y, z)``.
    """
    slips = np.abs(shifts).max(axis=0) >= threshold
    closed: Mask = ndimage.maximum_filter(slips, size=fov, mode="constant")
    return closed


def _logit(p: float) -> np.float32:
    return np.float32(math.log(p / (1.0 - p)))


def _extent(places: list[XYZ]) -> tuple[XYZ, XYZ]:
    low = high = places[0]
    for place in places:
        low, high = _each(min, low, place), _each(max, high, place)
    return low, high


def _each(choose: Callable[[int, int], int], a: XYZ, b: XYZ) -> XYZ:
    return (choose(a[0], b[0]), choose(a[1], b[1]), choose(a[2], b[2]))
