"""The moving field of view of training: what the network said at one place is what it is told at the next.

Each example is looked at from its middle first, then from the 26 places one move away, in an order that chance decides,
and only where the object has been found to go on. What was said so far is carried along, as in flood filling itself.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cloudseg.geometry import XYZ
from cloudseg.ops.flood import FloodRule
from cloudseg.training.flood_examples import FloodExample, FloodSampler

Floats = npt.NDArray[np.float32]

_IN, _OUT = 0.95, 0.05
"""What the network is to say of a voxel in the object, and of another one."""


@dataclass(slots=True)
class _Seat:
    """One example in the works."""

    number: int
    example: FloodExample
    places: list[XYZ]
    logits: Floats
    turn: int = 0


class MovingViews:
    """A batch of examples, each at a place of its own.

    Example ``k`` of seat ``i`` is drawn from the seed ``(seed, i, k)``, so nothing but the seed decides what is seen.

    Parameters
    ----------
    sampler
        Where examples come from.
    rule
        Field of view, moves and thresholds.
    n
        Seats: how many fields of view a batch has.
    seed
        Of all draws.
    """

    def __init__(self, sampler: FloodSampler, rule: FloodRule, *, n: int, seed: int) -> None:
        self._sampler, self._rule, self._seed = sampler, rule, seed
        self._start, self._pad, self._move = (
            np.float32(np.log(p / (1 - p))) for p in (rule.start, rule.pad, rule.move)
        )
        self._seats = [self._seated(i, 0) for i in range(n)]

    @property
    def n_examples(self) -> int:
        """How many examples have been done with."""
        return sum(seat.number for seat in self._seats)

    @property
    def where(self) -> tuple[str, ...]:
        """What is looked at now."""
        return tuple(seat.example.where for seat in self._seats)

    def views(self) -> tuple[Floats, Floats, npt.NDArray[np.bool_]]:
        """Return what the network sees and what it is to say.

        Returns
        -------
        views, wanted, known
            ``(n, 2, x, y, z)`` grey levels and logits; ``(n, x, y, z)`` probabilities, and whether they are known.
        """
        cuts = [self._cut(seat) for seat in self._seats]
        views = np.stack(
            [np.stack([s.example.image[c], s.logits[c]]) for s, c in zip(self._seats, cuts, strict=True)]
        )
        inside = np.stack([s.example.inside[c] for s, c in zip(self._seats, cuts, strict=True)])
        known = np.stack([s.example.known[c] for s, c in zip(self._seats, cuts, strict=True)])
        return views, np.where(inside, np.float32(_IN), np.float32(_OUT)), known

    def move(self, logits: Floats) -> None:
        """Take what the network said, ``(n, x, y, z)``, and go to the next places."""
        for i, seat in enumerate(self._seats):
            seat.logits[self._cut(seat)] = logits[i]
            seat.turn += 1
            while seat.turn < len(seat.places) and seat.logits[seat.places[seat.turn]] < self._move:
                seat.turn += 1
            if seat.turn == len(seat.places):
                self._seats[i] = self._seated(i, seat.number + 1)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return what :meth:`restore` needs to go on as if nothing had happened."""
        return {
            "seats": np.array([(seat.number, seat.turn) for seat in self._seats], np.int64),
            "logits": np.stack([seat.logits for seat in self._seats]),
        }

    def restore(self, state: dict[str, npt.NDArray[Any]]) -> None:
        """Take up what :meth:`state` returned."""
        for i, (number, turn) in enumerate(state["seats"].tolist()):
            self._seats[i] = seat = self._seated(i, number)
            seat.turn = turn
            seat.logits[...] = state["logits"][i]

    def _seated(self, i: int, number: int) -> _Seat:
        rng = np.random.default_rng([self._seed, i, number])
        example = self._sampler.draw(rng)
        x, y, z = (n // 2 for n in example.image.shape)
        dx, dy, dz = self._rule.deltas
        around = [(x + i * dx, y + j * dy, z + k * dz) for i, j, k in itertools.product((-1, 0, 1), repeat=3)]
        around.remove((x, y, z))
        order = [around[n] for n in rng.permutation(len(around))]
        logits = np.full(example.image.shape, self._pad, np.float32)
        logits[x, y, z] = self._start
        return _Seat(number, example, [(x, y, z), *order], logits)

    def _cut(self, seat: _Seat) -> tuple[slice, slice, slice]:
        x, y, z = (
            slice(p - h, p + h + 1) for p, h in zip(seat.places[seat.turn], self._rule.half, strict=True)
        )
        return (x, y, z)
