"""The inner steps of flood filling on one field of view, compiled: cut it out, write it back, where to go next."""

from __future__ import annotations

import numba
import numpy as np

# Arrays are (x, y, z). Volumes are in Fortran order, views in C order. Ties go to the lowest z, then y, then x.


@numba.njit(cache=True, nogil=True)
def cut(image, logits, x, y, z, pad, view) -> None:  # type: ignore[no-untyped-def]
    """Fill ``view``, ``(2, fx, fy, fz)``, with grey levels and logits (``pad`` where never visited) from a corner."""
    for i in range(view.shape[1]):
        for j in range(view.shape[2]):
            for k in range(view.shape[3]):
                view[0, i, j, k] = image[x + i, y + j, z + k]
                value = logits[x + i, y + j, z + k]
                view[1, i, j, k] = pad if np.isnan(value) else value


@numba.njit(cache=True, nogil=True)
def put(logits, x, y, z, view, move, freeze, segment, now, age) -> None:  # type: ignore[no-untyped-def]
    """Write the logits of a field of view back; in it, those that may not rise are set to what they were.

    Once the share of voxels from ``move`` on exceeds ``freeze`` (negative: never), a voxel that was voted out can only
    fall. ``age`` notes the step ``now`` at which a voxel came above ``segment`` first.
    """
    n_high = 0
    for value in view.flat:
        n_high += value >= move
    frozen = freeze >= 0 and n_high > freeze * view.size
    for i in range(view.shape[0]):
        for j in range(view.shape[1]):
            for k in range(view.shape[2]):
                new, old = view[i, j, k], logits[x + i, y + j, z + k]
                if frozen and old < 0 and new > old:
                    new = view[i, j, k] = old
                logits[x + i, y + j, z + k] = new
                if new >= segment and age[x + i, y + j, z + k] == 0:
                    age[x + i, y + j, z + k] = now


@numba.njit(cache=True, nogil=True)
def moves(view, dx, dy, dz, move, scores, offsets) -> int:  # type: ignore[no-untyped-def]
    """Find the best voxel on each face of the box of ``dx, dy, dz`` round the centre; return how many reach ``move``.

    ``scores`` (6,) and ``offsets`` (6, 3) hold them: highest score first, of equal ones the highest z, then y, then x.
    """
    cx, cy, cz = view.shape[0] // 2, view.shape[1] // 2, view.shape[2] // 2
    n = 0
    for face in range(6):
        ax, side = face // 2, 1 if face % 2 else -1
        # Axis by axis in the order z, y, x; the lower face first.
        lx, hx, ly, hy, lz, hz = -dx, dx, -dy, dy, -dz, dz
        if ax == 0:
            lz = hz = side * dz
        elif ax == 1:
            ly = hy = side * dy
        else:
            lx = hx = side * dx
        best = np.float32(-np.inf)
        bx, by, bz = 0, 0, 0
        for k in range(lz, hz + 1):
            for j in range(ly, hy + 1):
                for i in range(lx, hx + 1):
                    value = view[cx + i, cy + j, cz + k]
                    if value > best:
                        best, bx, by, bz = value, i, j, k
        if not best >= move:
            continue
        known = False
        for m in range(n):
            known |= offsets[m, 0] == bx and offsets[m, 1] == by and offsets[m, 2] == bz
        if known:
            continue
        at = n
        while at > 0 and _before(best, bx, by, bz, scores[at - 1], offsets[at - 1]):
            scores[at] = scores[at - 1]
            offsets[at, :] = offsets[at - 1, :]
            at -= 1
        scores[at] = best
        offsets[at, 0], offsets[at, 1], offsets[at, 2] = bx, by, bz
        n += 1
    return n


@numba.njit(cache=True, nogil=True)
def _before(score, x, y, z, other, place):  # type: ignore[no-untyped-def]
    if score != other:
        return score > other
    if z != place[2]:
        return z > place[2]
    if y != place[1]:
        return y > place[1]
    return x > place[0]
