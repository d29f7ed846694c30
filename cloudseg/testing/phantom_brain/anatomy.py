"""Where cell bodies, vessels and thick axons are, and what became of each section: functions of seed and place.

Space is divided into homes, each of which draws its bodies from its own hash. Bodies that come too close to a more
important neighbour are dropped, the others shrink until they only press against each other: both look a few homes
far, so any region can be asked for by itself. Vessels and axons are bent lines through a coarse lattice.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from cloudseg.testing.phantom_brain.spec import BrainSpec

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.uint64]

NEURON, GLIA = 0, 1
VESSEL, AXON, STALK = 0, 1, 2

# Two bodies press against each other until their centres are this share of the sum of their radii apart.
_PRESS = 0.93
# Bodies closer than this to a more important one are dropped, in radii of the settings.
_CROWDED = 1.15
# What decides about a body has its home within this many homes: 2.7 radii for its size, 1.15 more for who crowds
# whom, and the way from a centre to the corner of its home.
_NEAR_HOMES = 3.2
# How irregular a body may be: greatest share that its radius varies by.
_UNEVEN = 0.2
_HILLOCK = 0.16
BUMP_NM = 200.0
# How far outside a body the image still knows of it.
SHEATH_NM = 250.0
# How far outside a tube the image may still know of it.
TUBE_NM = 500.0
_RIM_NM = 1500.0
# Half the tissue against half the volume: a stack is thinner than the brain, so its first and last section cut it.
TISSUE_SIZE = np.array([1.06, 1.06, 1.6])
_VESSEL_PITCH_NM = 26_000.0
_AXON_PITCH_NM = 7_000.0


@dataclass(frozen=True, slots=True)
class Bodies:
    """Cell bodies, one entry each.

    Attributes
    ----------
    ids
        ``(n,)`` uint64, from 1.
    kind
        ``(n,)``: ``NEURON`` or ``GLIA``.
    centre_nm, radius_nm
        ``(n, 3)`` and ``(n,)``; a body is a ball but for bumps.
    reach_nm
        ``(n,)``: the body, and what the image shows of it, ends within this distance.
    uneven
        ``(n, 6)``: xx, yy, zz, xy, xz, yz of the share by which the radius differs in a direction.
    axis
        ``(n, 4)``: direction of the hillock, and how far it stands out (share of the radius).
    nucleus
        ``(n, 4)``: centre and radius, in nm.
    nucleolus
        ``(n, 4)``: centre and radius, in nm.
    """

    ids: Ids
    kind: npt.NDArray[np.int64]
    centre_nm: Floats
    radius_nm: Floats
    reach_nm: Floats
    uneven: Floats
    axis: Floats
    nucleus: Floats
    nucleolus: Floats

    def take(self, which: npt.NDArray[Any]) -> Bodies:
        """Return some of them."""
        return Bodies(*(getattr(self, f.name)[which] for f in fields(self)))


@dataclass(frozen=True, slots=True)
class Tubes:
    """Straight pieces of tubes, ``(n, 3)`` ends and ``(n,)`` radii in nm; ``kind`` as the constants say."""

    kind: npt.NDArray[np.int64]
    start_nm: Floats
    stop_nm: Floats
    start_radius_nm: Floats
    stop_radius_nm: Floats


@dataclass(frozen=True, slots=True)
class Sections:
    """What became of each section: grey = grey * gain + offset; shifts in nm; lost ones are black."""

    gain: Floats
    offset: Floats
    shift_nm: Floats
    lost: npt.NDArray[np.bool_]


def random(seed: int, stream: int, *place: Any) -> Floats:
    """Return numbers from 0 to 1, one per place (integers that broadcast), independent between streams."""
    with np.errstate(over="ignore"):
        h = np.uint64((seed * 0x9E3779B97F4A7C15 + stream * 0xD1B54A32D192ED03) % 2**64)
        for part in place:
            h = _mix(h ^ (np.asarray(part, np.int64).astype(np.uint64) * np.uint64(0xBF58476D1CE4E5B9)))
        drawn: Floats = (_mix(h) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return drawn


def _mix(h: Any) -> Any:
    h = h + np.uint64(0x9E3779B97F4A7C15)
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


def depth_nm(spec: BrainSpec, place_nm: Floats) -> Floats:
    """Return how deep places lie below the surface of the tissue, roughly; negative outside. ``(n, 3)`` in."""
    if spec.tissue == "all":
        return np.full(len(place_nm), 1e9)
    half = np.array(spec.extent_nm) * 0.5 * TISSUE_SIZE
    share = np.abs(place_nm - np.array(spec.extent_nm) / 2) / half
    q = np.maximum((share**4).sum(axis=1) ** 0.25, 1e-6)
    steep = np.sqrt((((share / q[:, None]) ** 3 / half) ** 2).sum(axis=1))
    depth: Floats = (1 - q) / steep
    return depth


def bodies(spec: BrainSpec, low_nm: Floats, high_nm: Floats) -> Bodies:
    """Return all bodies that may reach into the region from ``low_nm`` to ``high_nm``."""
    # A stalk ends 1.6 radii from the middle of its body.
    widest = 1.25 * spec.radius_nm * 1.6 + BUMP_NM + SHEATH_NM
    low, high = low_nm - widest, high_nm + widest
    margin = _NEAR_HOMES * spec.pitch_nm
    drawn = _candidates(spec, low - margin, high + margin)
    kept = drawn.take(_uncrowded(spec, drawn))
    settled = _pressed(spec, kept)
    inside = np.all((settled.centre_nm >= low) & (settled.centre_nm < high), axis=1)
    return settled.take(np.flatnonzero(inside))


def _candidates(spec: BrainSpec, low_nm: Floats, high_nm: Floats) -> Bodies:
    """Bodies that the homes of a region would like to have."""
    n_homes = np.array(spec.homes)
    first = np.clip(np.floor(low_nm / spec.pitch_nm).astype(np.int64), -2, n_homes - 2)
    last = np.clip(np.ceil(high_nm / spec.pitch_nm).astype(np.int64), -2, n_homes - 2)
    ranges = [np.arange(a, b, dtype=np.int64) for a, b in zip(first, last, strict=True)]
    home = np.stack(np.meshgrid(*ranges, [0, 1], indexing="ij"), axis=-1).reshape(-1, 4)
    x, y, z, twin = home.T

    def r(stream: int, *, shared: bool = False) -> Floats:
        return random(spec.seed, stream, x, y, z, 0 if shared else twin)

    middle = (home[:, :3] + 0.5) * spec.pitch_nm
    jitter = np.stack([r(s, shared=True) for s in (1, 2, 3)], axis=1) - 0.5
    middle = middle + jitter * 0.5 * spec.pitch_nm
    in_pair = r(4, shared=True) < spec.pairs
    # A sum of three uniforms is bell-shaped enough; within 0.72 to 1.25 radii.
    size = (r(5) + r(6) + r(7) - 1.5) * 2.0
    radius = spec.radius_nm * np.clip(1.0 + 0.2 * size, 0.72, 1.25)
    kind = np.where((r(8) < spec.glia) & ~in_pair, GLIA, NEURON)
    radius = np.where(kind == GLIA, 0.72 * radius, radius)
    radius = np.where(in_pair, 0.92 * spec.radius_nm * (0.9 + 0.2 * r(5, shared=True)), radius)
    apart = _directions(r(9, shared=True), r(10, shared=True)) * (_PRESS * radius)[:, None]
    centre = middle + np.where(in_pair[:, None], np.where(twin[:, None] == 0, 1.0, -1.0) * apart, 0.0)
    there = in_pair | (twin == 0)
    depth = depth_nm(spec, middle)
    is_rind = (depth < spec.rind_nm) | (spec.tissue == "all")
    share = np.where(is_rind, spec.filling, spec.filling_inside)
    there &= r(11, shared=True) < share
    there &= depth_nm(spec, centre) > radius * (1 + _UNEVEN) + _RIM_NM
    index = ((z + 2) * n_homes[1] + (y + 2)) * n_homes[0] + (x + 2)
    made = _shaped(spec, home, (index * 2 + twin + 1).astype(np.uint64), kind, centre, radius)
    made = made.take(np.flatnonzero(there))
    return made.take(np.flatnonzero(_clear_of_vessels(spec, made)))


def _shaped(
    spec: BrainSpec,
    home: npt.NDArray[np.int64],
    ids: Ids,
    kind: npt.NDArray[np.int64],
    centre: Floats,
    radius: Floats,
) -> Bodies:
    """Give each body its form."""

    def r(stream: int) -> Floats:
        return random(spec.seed, stream, *home.T)

    raw = np.stack([r(s) for s in range(20, 26)], axis=1) * 2 - 1
    raw[:, :3] -= raw[:, :3].mean(axis=1, keepdims=True)
    # The largest entries of a symmetric matrix bound what it can do: scaled so that no direction differs by more.
    bound = np.abs(raw[:, :3]).max(axis=1) + np.abs(raw[:, 3:]).sum(axis=1)
    strength = np.where(kind == GLIA, _UNEVEN, 0.4 * _UNEVEN + 0.6 * _UNEVEN * r(26))
    uneven = raw * (strength / np.maximum(bound, 1e-9))[:, None]
    axis = np.concatenate(
        [_directions(r(27), r(28)), np.where(kind == GLIA, 0.0, _HILLOCK * r(29))[:, None]], axis=1
    )
    share = np.where(kind == GLIA, 0.74, 0.60 + 0.13 * r(30))
    nucleus = np.concatenate(
        [centre + _directions(r(31), r(32)) * (0.16 * radius * r(33))[:, None], (share * radius)[:, None]],
        axis=1,
    )
    away = 0.45 * nucleus[:, 3] * r(36)
    size = nucleus[:, 3] * np.where(kind == GLIA, 0.0, 0.22 + 0.12 * r(37))
    nucleolus = np.concatenate(
        [nucleus[:, :3] + _directions(r(34), r(35)) * away[:, None], size[:, None]], axis=1
    )
    return Bodies(ids, kind, centre, radius, np.zeros(len(ids)), uneven, axis, nucleus, nucleolus)


def _uncrowded(spec: BrainSpec, drawn: Bodies) -> npt.NDArray[np.int64]:
    """Which bodies have no more important one too near."""
    rank = random(spec.seed, 40, drawn.ids.astype(np.int64))
    dropped = np.zeros(len(rank), bool)
    a, b = _pairs(drawn.centre_nm, _CROWDED * spec.radius_nm)
    dropped[np.where(rank[a] < rank[b], a, b)] = True
    return np.flatnonzero(~dropped)


def _pressed(spec: BrainSpec, kept: Bodies) -> Bodies:
    """Shrink bodies until each takes its half of the way to its nearest neighbour, and a little more."""
    nearest = np.full(len(kept.ids), np.inf)
    a, b = _pairs(kept.centre_nm, 2.7 * spec.radius_nm)
    gap = np.linalg.norm(kept.centre_nm[a] - kept.centre_nm[b], axis=1)
    np.minimum.at(nearest, a, gap)
    np.minimum.at(nearest, b, gap)
    radius = np.minimum(kept.radius_nm, nearest / (2 * _PRESS))
    factor = (radius / kept.radius_nm)[:, None]
    c = kept.centre_nm

    def shrunk(ball: Floats) -> Floats:
        return np.concatenate([c + (ball[:, :3] - c) * factor, ball[:, 3:] * factor], axis=1)

    reach = radius * (1 + _UNEVEN + kept.axis[:, 3]) + BUMP_NM + SHEATH_NM
    return Bodies(
        kept.ids,
        kept.kind,
        c,
        radius,
        reach,
        kept.uneven,
        kept.axis,
        shrunk(kept.nucleus),
        shrunk(kept.nucleolus),
    )


def _pairs(centre: Floats, most: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    if len(centre) < 2:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    # Rounded up: which pairs just miss the distance must not depend on the tree.
    found = cKDTree(centre).query_pairs(most * (1 + 1e-9), output_type="ndarray")
    exact = np.linalg.norm(centre[found[:, 0]] - centre[found[:, 1]], axis=1) <= most
    return found[exact, 0], found[exact, 1]


def _directions(a: Floats, b: Floats) -> Floats:
    """Directions from two uniform numbers."""
    z, angle = 2 * a - 1, 2 * np.pi * b
    flat = np.sqrt(np.maximum(1 - z * z, 0))
    return np.stack([flat * np.cos(angle), flat * np.sin(angle), z], axis=1)


def _clear_of_vessels(spec: BrainSpec, made: Bodies) -> npt.NDArray[np.bool_]:
    clear = np.ones(len(made.ids), bool)
    if not len(clear):
        return clear
    low, high = made.centre_nm.min(axis=0), made.centre_nm.max(axis=0)
    reach = 1.5 * spec.radius_nm + 500.0
    lines = _lines(spec, VESSEL, _VESSEL_PITCH_NM, spec.vessels, low - reach, high + reach)
    for start, stop, radius in zip(lines.start_nm, lines.stop_nm, lines.start_radius_nm, strict=True):
        along = stop - start
        t = np.clip((made.centre_nm - start) @ along / (along @ along), 0, 1)
        gap = np.linalg.norm(made.centre_nm - start - t[:, None] * along, axis=1)
        clear &= gap > radius + made.radius_nm * (1 + _UNEVEN) + 400.0
    return clear


def tubes(spec: BrainSpec, low_nm: Floats, high_nm: Floats, near: Bodies) -> Tubes:
    """Return the vessels, thick axons, and stalks of the bodies ``near``, that may reach into a region."""
    parts = [
        _lines(spec, VESSEL, _VESSEL_PITCH_NM, spec.vessels, low_nm, high_nm),
        _lines(spec, AXON, _AXON_PITCH_NM, spec.axons, low_nm, high_nm),
    ]
    neurons = near.take(np.flatnonzero(near.kind == NEURON))
    direction = neurons.axis[:, :3]
    start = neurons.centre_nm + direction * (0.6 * neurons.radius_nm)[:, None]
    stop = neurons.centre_nm + direction * (1.45 * neurons.radius_nm)[:, None]
    wide = 0.20 * neurons.radius_nm
    parts.append(Tubes(np.full(len(wide), STALK), start, stop, wide, 0.6 * wide))
    return Tubes(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Tubes)))


def _lines(spec: BrainSpec, kind: int, pitch_nm: float, share: float, low: Floats, high: Floats) -> Tubes:
    """Bent lines along each axis, through one node per cell of a lattice."""
    starts, stops, radii = [], [], []
    for axis in range(3):
        others = [a for a in range(3) if a != axis]
        first = np.floor(low / pitch_nm).astype(np.int64) - 2
        last = np.ceil(high / pitch_nm).astype(np.int64) + 2
        nodes = np.stack(
            np.meshgrid(
                *(np.arange(a, b, dtype=np.int64) for a, b in zip(first, last, strict=True)), indexing="ij"
            ),
            axis=-1,
        ).reshape(-1, 3)
        line = nodes[:, others]
        stream = 50 + 10 * (3 * kind + axis)
        nodes = nodes[random(spec.seed, stream, *line.T) < share]
        following = nodes.copy()
        following[:, axis] += 1
        starts.append(_nodes(spec, nodes, axis, stream, pitch_nm))
        stops.append(_nodes(spec, following, axis, stream, pitch_nm))
        chance = random(spec.seed, stream + 5, *nodes[:, others].T)
        radii.append(1100.0 + 1300.0 * chance if kind == VESSEL else 300.0 + 700.0 * chance**2)
    start, stop, radius = np.concatenate(starts), np.concatenate(stops), np.concatenate(radii)
    wide = (radius + TUBE_NM)[:, None]
    near = np.all((np.minimum(start, stop) - wide < high) & (np.maximum(start, stop) + wide > low), axis=1)
    thick = radius[near]
    return Tubes(np.full(len(thick), kind), start[near], stop[near], thick, thick)


def _nodes(spec: BrainSpec, index: npt.NDArray[np.int64], axis: int, stream: int, pitch_nm: float) -> Floats:
    place: Floats = (index.astype(np.float64) + 0.5) * pitch_nm
    for other in range(3):
        if other != axis:
            place[:, other] += (random(spec.seed, stream + 1 + other, *index.T) - 0.5) * 1.1 * pitch_nm
    return place


def sections(spec: BrainSpec, first: int, last: int) -> Sections:
    """Return what became of sections ``first`` to ``last`` (exclusive)."""
    z = np.arange(first, last, dtype=np.int64)

    def r(stream: int, index: npt.NDArray[np.int64] = z) -> Floats:
        return random(spec.seed, stream, index)

    often = spec.artefacts
    if not often:
        still = np.zeros((len(z), 2))
        return Sections(np.ones(len(z)), np.zeros(len(z)), still, np.zeros(len(z), bool))
    # The microscope is stopped every 90 sections or so: contrast jumps, and the stack goes on a little aside.
    run = (z + 37) // 90
    gain: Floats = 1.0 + 0.12 * (2 * r(201, run) - 1) * min(often, 2.0)
    offset = 10.0 * (2 * r(202, run) - 1) * min(often, 2.0)
    odd = r(203) < 0.01 * often
    gain = gain * np.where(odd, 0.65 + 0.7 * r(204), 1.0)
    offset = offset + np.where(odd, 30.0 * (2 * r(205) - 1), 0.0)
    shift = np.stack([120.0 * (2 * r(206, run) - 1), 120.0 * (2 * r(207, run) - 1)], axis=1)
    slipped = r(208) < 0.01 * often
    slip = np.stack([250.0 * (2 * r(209) - 1), 250.0 * (2 * r(210) - 1)], axis=1)
    shift = (shift + np.where(slipped[:, None], slip, 0.0)) * min(often, 2.0)
    return Sections(gain, offset, shift, r(211) < 0.004 * often)


MOST_SHIFT_NM = 2 * (120.0 + 250.0)
