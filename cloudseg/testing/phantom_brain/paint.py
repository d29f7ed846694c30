"""The picture and the truth of a box, voxel by voxel: each value is a function of its place alone.

Nothing here depends on where the box begins: lattices of noise and of detector noise are counted from the volume's
origin, lists of what is near only leave out what is too far to matter, and no function is used whose last bit a
vectorising compiler might round differently (no exponentials, no sines).
"""

from __future__ import annotations

import numba
import numpy as np

# What a voxel of the truth says.
BODY, NUCLEUS = 0, 1

_TILE = 32
# Value noise: wavelengths in nm along x, y, z; slightly turned against each other by being incommensurable.
_GRAIN, _FIBRE, _NEURITE, _BLOB, _TONE, _SHAPE, _CLUMP = 0, 1, 2, 3, 4, 5, 6
_WAVES = np.array(
    [
        [170.0, 170.0, 150.0],
        [430.0, 450.0, 470.0],
        [830.0, 790.0, 870.0],
        [640.0, 660.0, 610.0],
        [5100.0, 5300.0, 4900.0],
        [1700.0, 1600.0, 1750.0],
        [520.0, 560.0, 540.0],
    ]
)
_N_WAVES = 7


@numba.njit(cache=True, inline="always")
def _mix(h):
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


@numba.njit(cache=True, inline="always")
def _knot(seed, i, j, k):
    """A number from -1 to 1 at a knot of a lattice."""
    h = seed + np.uint64(i) * np.uint64(0x9E3779B97F4A7C15)
    h ^= np.uint64(j) * np.uint64(0xC2B2AE3D27D4EB4F)
    h += np.uint64(k) * np.uint64(0x165667B19E3779F9)
    return np.float32((_mix(h) >> np.uint64(40)) * (2.0**-23) - 1.0)


@numba.njit(cache=True, inline="always")
def _smooth(t):
    return t * t * (np.float32(3.0) - np.float32(2.0) * t)


@numba.njit(cache=True)
def _noise_row(out, seed, first, step_nm, shift_nm, y_nm, z_nm, wave):
    """Value noise along one row of voxels; ``y_nm`` and ``z_nm`` are those of the row."""
    v, w = y_nm / wave[1], z_nm / wave[2]
    j, k = np.int64(np.floor(v)), np.int64(np.floor(w))
    fj, fk = _smooth(np.float32(v - j)), _smooth(np.float32(w - k))
    one = np.float32(1.0)
    at = np.int64(-(1 << 62))
    low, high = np.float32(0.0), np.float32(0.0)
    for n in range(out.size):
        u = ((first + n + 0.5) * step_nm + shift_nm) / wave[0]
        i = np.int64(np.floor(u))
        if i != at:
            if i == at + 1:
                low = high
            else:
                low = (one - fk) * (
                    (one - fj) * _knot(seed, i, j, k) + fj * _knot(seed, i, j + 1, k)
                ) + fk * ((one - fj) * _knot(seed, i, j, k + 1) + fj * _knot(seed, i, j + 1, k + 1))
            high = (one - fk) * (
                (one - fj) * _knot(seed, i + 1, j, k) + fj * _knot(seed, i + 1, j + 1, k)
            ) + fk * ((one - fj) * _knot(seed, i + 1, j, k + 1) + fj * _knot(seed, i + 1, j + 1, k + 1))
            at = i
        f = _smooth(np.float32(u - i))
        out[n] = low + (high - low) * f


@numba.njit(cache=True)
def _turned_row(out, seed, first, step_nm, shift_nm, y_nm, z_nm, wave):
    """The same on a lattice turned by 37 degrees within sections: outlines that follow a lattice look woven."""
    w = (z_nm + 0.3 * y_nm) / wave[2]
    k = np.int64(np.floor(w))
    fk = _smooth(np.float32(w - k))
    one = np.float32(1.0)
    at_i, at_j = np.int64(-(1 << 62)), np.int64(0)
    a, b, c, d = np.float32(0.0), np.float32(0.0), np.float32(0.0), np.float32(0.0)
    for n in range(out.size):
        x_nm = (first + n + 0.5) * step_nm + shift_nm
        u, v = (0.8 * x_nm + 0.6 * y_nm) / wave[0], (0.8 * y_nm - 0.6 * x_nm) / wave[1]
        i, j = np.int64(np.floor(u)), np.int64(np.floor(v))
        if i != at_i or j != at_j:
            a = (one - fk) * _knot(seed, i, j, k) + fk * _knot(seed, i, j, k + 1)
            b = (one - fk) * _knot(seed, i + 1, j, k) + fk * _knot(seed, i + 1, j, k + 1)
            c = (one - fk) * _knot(seed, i, j + 1, k) + fk * _knot(seed, i, j + 1, k + 1)
            d = (one - fk) * _knot(seed, i + 1, j + 1, k) + fk * _knot(seed, i + 1, j + 1, k + 1)
            at_i, at_j = i, j
        fi, fj = _smooth(np.float32(u - i)), _smooth(np.float32(v - j))
        low = a + (b - a) * fi
        out[n] = low + (c + (d - c) * fi - low) * fj


@numba.njit(cache=True, inline="always")
def _line(distance_nm, width_nm):
    """1 on a membrane, falling off over its width."""
    t = distance_nm / width_nm
    t = np.float32(1.0) + t * t
    return np.float32(1.0) / (t * t)


@numba.njit(cache=True)
def _lists(lists, n_listed, most, x_nm, y_nm, z_nm, centre, reach):
    """Note for each tile of a section which balls may reach into it."""
    n_x, n_y = n_listed.shape
    n_listed[:] = 0
    for b in range(reach.size):
        if abs(centre[b, 2] - z_nm) > reach[b]:
            continue
        for i in range(n_x):
            gx = max(x_nm[i] - centre[b, 0], centre[b, 0] - x_nm[i + 1], 0.0)
            if gx > reach[b]:
                continue
            for j in range(n_y):
                gy = max(y_nm[j] - centre[b, 1], centre[b, 1] - y_nm[j + 1], 0.0)
                if gx * gx + gy * gy <= reach[b] * reach[b]:
                    assert n_listed[i, j] < most
                    lists[i, j, n_listed[i, j]] = b
                    n_listed[i, j] += 1


@numba.njit(cache=True, nogil=True)
def labels(out, start, size_nm, seeds, bodies, sections, what, most):
    """Write the id of the body (or, for ``NUCLEUS``, of the nucleus) at each voxel; 0 elsewhere.

    ``out`` is ``(z, y, x)``; ``bodies`` and ``sections`` are the tuples that :mod:`brain` makes.
    """
    ids, _, centre, radius, reach, uneven, axis, nucleus, _ = bodies
    _, _, shift, _ = sections
    n_z, n_y, n_x = out.shape
    t_x, t_y = -(-n_x // _TILE), -(-n_y // _TILE)
    lists = np.empty((t_x, t_y, most), np.int64)
    n_listed = np.zeros((t_x, t_y), np.int64)
    bump = np.empty(n_x, np.float32)
    x_nm, y_nm = np.empty(t_x + 1), np.empty(t_y + 1)
    for z in range(n_z):
        z_nm = (start[2] + z + 0.5) * size_nm[2]
        for t in range(t_x + 1):
            x_nm[t] = (start[0] + t * _TILE) * size_nm[0] + shift[z, 0]
        for t in range(t_y + 1):
            y_nm[t] = (start[1] + t * _TILE) * size_nm[1] + shift[z, 1]
        _lists(lists, n_listed, most, x_nm, y_nm, z_nm, centre, reach)
        for y in range(n_y):
            out[z, y, :] = 0
            ty = y // _TILE
            if n_listed[:, ty].max() == 0:
                continue
            v = (start[1] + y + 0.5) * size_nm[1] + shift[z, 1]
            _noise_row(bump, seeds[_SHAPE], start[0], size_nm[0], shift[z, 0], v, z_nm, _WAVES[_SHAPE])
            for tx in range(t_x):
                n = n_listed[tx, ty]
                if n == 0:
                    continue
                for x in range(tx * _TILE, min((tx + 1) * _TILE, n_x)):
                    u = (start[0] + x + 0.5) * size_nm[0] + shift[z, 0]
                    best, owner = np.float32(1e9), -1
                    for m in range(n):
                        b = lists[tx, ty, m]
                        f = _surface(u, v, z_nm, centre, radius, reach, uneven, axis, b)
                        if f < best or (f == best and owner >= 0 and ids[b] < ids[owner]):
                            best, owner = f, b
                    if owner < 0 or best > np.float32(_BUMP_NM) * bump[x]:
                        continue
                    if what == NUCLEUS:
                        if _in_nucleus(u, v, z_nm, uneven, nucleus, owner) > np.float32(0.0):
                            continue
                    out[z, y, x] = ids[owner]


_BUMP_NM = 200.0  # as in anatomy


@numba.njit(cache=True, inline="always")
def _unevenness(uneven, b, dx, dy, dz, q):
    """By which share body ``b`` reaches further in the direction ``dx, dy, dz`` of squared length ``q``."""
    return (
        np.float32(uneven[b, 0]) * dx * dx
        + np.float32(uneven[b, 1]) * dy * dy
        + np.float32(uneven[b, 2]) * dz * dz
        + np.float32(2.0)
        * (
            np.float32(uneven[b, 3]) * dx * dy
            + np.float32(uneven[b, 4]) * dx * dz
            + np.float32(uneven[b, 5]) * dy * dz
        )
    ) / q


@numba.njit(cache=True, inline="always")
def _surface(x, y, z, centre, radius, reach, uneven, axis, b):
    """How far outside the surface of body ``b`` a place lies, in nm, before bumps; 1e9 beyond its reach."""
    dx, dy, dz = (
        np.float32(x - centre[b, 0]),
        np.float32(y - centre[b, 1]),
        np.float32(z - centre[b, 2]),
    )
    q = dx * dx + dy * dy + dz * dz
    r = np.float32(reach[b])
    if q > r * r:
        return np.float32(1e9)
    q = max(q, np.float32(1e-3))
    s = np.sqrt(q)
    form = _unevenness(uneven, b, dx, dy, dz, q)
    up = (dx * np.float32(axis[b, 0]) + dy * np.float32(axis[b, 1]) + dz * np.float32(axis[b, 2])) / s
    if up > np.float32(0.0):
        up3 = up * up * up
        form += np.float32(axis[b, 3]) * up3 * up3
    return s - np.float32(radius[b]) * (np.float32(1.0) + form)


@numba.njit(cache=True, inline="always")
def _in_nucleus(x, y, z, uneven, nucleus, b):
    """How far outside the nucleus of body ``b`` a place lies, in nm."""
    dx, dy, dz = (
        np.float32(x - nucleus[b, 0]),
        np.float32(y - nucleus[b, 1]),
        np.float32(z - nucleus[b, 2]),
    )
    q = max(dx * dx + dy * dy + dz * dz, np.float32(1e-3))
    form = _unevenness(uneven, b, dx, dy, dz, q)
    return np.sqrt(q) - np.float32(nucleus[b, 3]) * (np.float32(1.0) + form)


@numba.njit(cache=True, nogil=True)
def image(out, start, size_nm, seeds, bodies, tubes, sections, tissue, look, most):
    """Write the grey levels of a box; ``out`` is ``(z, y, x)`` uint8.

    ``tissue`` is ``(everywhere, half extents of the tissue, middle)``; ``look`` is ``(contrast, noise)``.
    """
    ids, kinds, centre, radius, reach, uneven, axis, nucleus, nucleolus = bodies
    tube_kind, tube_start, tube_stop, tube_r0, tube_r1, tube_middle, tube_reach = tubes
    gain, offset, shift, lost = sections
    everywhere, half, middle = tissue
    contrast, noise = np.float32(look[0]), np.float32(look[1])
    n_z, n_y, n_x = out.shape
    t_x, t_y = -(-n_x // _TILE), -(-n_y // _TILE)
    lists = np.empty((t_x, t_y, most), np.int64)
    n_listed = np.zeros((t_x, t_y), np.int64)
    tube_lists = np.empty((t_x, t_y, most), np.int64)
    n_tubes = np.zeros((t_x, t_y), np.int64)
    rows = np.zeros((_N_WAVES, n_x), np.float32)
    x_nm, y_nm = np.empty(t_x + 1), np.empty(t_y + 1)
    voxel_nm = (size_nm[0] * size_nm[1] * size_nm[2]) ** (1.0 / 3.0)
    width = np.float32(max(45.0, 0.75 * voxel_nm))
    # Noise of a wavelength that the voxels cannot show is left out: it would alias.
    shown = np.empty(_N_WAVES, np.float32)
    for n in range(_N_WAVES):
        shown[n] = 1.0 if _WAVES[n].min() >= 2.0 * max(size_nm[0], size_nm[1], size_nm[2]) else 0.0
    zero, one, half_one = np.float32(0.0), np.float32(1.0), np.float32(0.5)
    for z in range(n_z):
        if lost[z]:
            out[z] = 0
            continue
        z_nm = (start[2] + z + 0.5) * size_nm[2]
        for t in range(t_x + 1):
            x_nm[t] = (start[0] + t * _TILE) * size_nm[0] + shift[z, 0]
        for t in range(t_y + 1):
            y_nm[t] = (start[1] + t * _TILE) * size_nm[1] + shift[z, 1]
        _lists(lists, n_listed, most, x_nm, y_nm, z_nm, centre, reach)
        _lists(tube_lists, n_tubes, most, x_nm, y_nm, z_nm, tube_middle, tube_reach)
        sz = abs(z_nm - middle[2]) / half[2]
        sz4 = sz * sz * sz * sz
        for y in range(n_y):
            v = (start[1] + y + 0.5) * size_nm[1] + shift[z, 1]
            sy = abs(v - middle[1]) / half[1]
            sy4 = sy * sy * sy * sy
            for n in range(_N_WAVES):
                if shown[n] > 0 and n in (_FIBRE, _NEURITE):
                    _turned_row(rows[n], seeds[n], start[0], size_nm[0], shift[z, 0], v, z_nm, _WAVES[n])
                elif shown[n] > 0:
                    _noise_row(rows[n], seeds[n], start[0], size_nm[0], shift[z, 0], v, z_nm, _WAVES[n])
            ty = y // _TILE
            for x in range(n_x):
                tx = x // _TILE
                u = (start[0] + x + 0.5) * size_nm[0] + shift[z, 0]
                grain, fibre, neurite = rows[_GRAIN, x], rows[_FIBRE, x], rows[_NEURITE, x]
                blob, tone, clump = rows[_BLOB, x], rows[_TONE, x], rows[_CLUMP, x]
                # How deep the place lies below the surface of the tissue, in nm.
                depth = np.float32(1e6)
                if not everywhere:
                    sx = abs(u - middle[0]) / half[0]
                    sx4 = sx * sx * sx * sx
                    q4 = sx4 + sy4 + sz4
                    if q4 > 0.6:
                        q = np.sqrt(np.sqrt(q4))
                        gx, gy, gz = sx * sx * sx / half[0], sy * sy * sy / half[1], sz * sz * sz / half[2]
                        steep = np.sqrt(gx * gx + gy * gy + gz * gz) / (q * q * q)
                        depth = np.float32((1.0 - q) / steep) + np.float32(700.0) * tone
                if depth < zero:
                    # Resin: even and bright, with a smear beside the tissue.
                    grey = np.float32(196.0) + np.float32(3.0) * tone
                else:
                    # Neuropil: outlines of processes of two sizes, mitochondria, grain.
                    ridge = abs(fibre + np.float32(0.6) * neurite)
                    ridge2 = abs(neurite - np.float32(0.35) * fibre + np.float32(0.08))
                    grey = np.float32(142.0) + np.float32(10.0) * tone + np.float32(13.0) * grain
                    grey += np.float32(9.0) * clump
                    grey -= np.float32(46.0) * contrast * max(zero, one - ridge * np.float32(6.5))
                    grey -= np.float32(54.0) * contrast * max(zero, one - ridge2 * np.float32(9.0))
                    if blob > np.float32(0.50) and ridge2 > np.float32(0.10):
                        grey -= np.float32(42.0) * min(one, (blob - np.float32(0.50)) * np.float32(9.0))
                    inside_tube = zero
                    for m in range(n_tubes[tx, ty]):
                        b = tube_lists[tx, ty, m]
                        ax, ay, az = (
                            tube_stop[b, 0] - tube_start[b, 0],
                            tube_stop[b, 1] - tube_start[b, 1],
                            tube_stop[b, 2] - tube_start[b, 2],
                        )
                        px, py, pz = u - tube_start[b, 0], v - tube_start[b, 1], z_nm - tube_start[b, 2]
                        t = (px * ax + py * ay + pz * az) / (ax * ax + ay * ay + az * az)
                        t = min(max(t, 0.0), 1.0)
                        px, py, pz = px - t * ax, py - t * ay, pz - t * az
                        d = (
                            np.float32(
                                np.sqrt(px * px + py * py + pz * pz)
                                - tube_r0[b]
                                - t * (tube_r1[b] - tube_r0[b])
                            )
                            + np.float32(90.0) * rows[_SHAPE, x]
                        )
                        if d >= np.float32(400.0):
                            continue  # exactly nothing, for another box may not list it
                        if tube_kind[b] == 0:
                            # A vessel: empty, with a thin dark wall.
                            if d < zero:
                                grey = np.float32(212.0) + np.float32(2.0) * clump
                                inside_tube = one
                            elif d < np.float32(260.0) and inside_tube == zero:
                                grey = np.float32(108.0) + np.float32(12.0) * clump
                            grey -= (
                                np.float32(40.0) * contrast * _line(d, width) * (one - half_one * inside_tube)
                            )
                        elif inside_tube == zero:
                            # Thick axons and stalks: pale and even, microtubules, a membrane.
                            if d < zero:
                                grey = np.float32(158.0) + np.float32(8.0) * grain + np.float32(5.0) * clump
                                if blob > np.float32(0.62):
                                    grey -= np.float32(40.0)
                                inside_tube = half_one if tube_kind[b] == 2 else one
                            grey -= np.float32(70.0) * contrast * _line(d, width)
                    # Cell bodies.
                    best, second, owner = np.float32(1e9), np.float32(1e9), -1
                    for m in range(n_listed[tx, ty]):
                        b = lists[tx, ty, m]
                        f = _surface(u, v, z_nm, centre, radius, reach, uneven, axis, b)
                        if f < best or (f == best and owner >= 0 and ids[b] < ids[owner]):
                            best, second, owner = f, best, b
                        elif f < second:
                            second = f
                    if owner >= 0:
                        best -= np.float32(_BUMP_NM) * rows[_SHAPE, x]
                        second -= np.float32(_BUMP_NM) * rows[_SHAPE, x]
                        if best <= zero:
                            grey = _body(
                                u,
                                v,
                                z_nm,
                                kinds[owner],
                                owner,
                                uneven,
                                nucleus,
                                nucleolus,
                                grain,
                                fibre,
                                clump,
                                blob,
                                tone,
                                contrast,
                                width,
                            )
                            apart = half_one * (second - best)
                            grey -= np.float32(72.0) * contrast * _line(min(-best, apart), width)
                        else:
                            # A sheath of glia round the body, dark where two bodies nearly touch.
                            sheath = _line(best, np.float32(150.0))
                            grey += sheath * (np.float32(112.0) + np.float32(14.0) * clump - grey)
                            grey -= np.float32(60.0) * contrast * _line(best, width)
                    if depth < np.float32(900.0):
                        # The sheath of the whole tissue.
                        grey -= np.float32(30.0) * (one - depth / np.float32(900.0))
                        grey -= np.float32(50.0) * contrast * _line(depth, np.float32(2.0) * width)
                h = seeds[_N_WAVES] + np.uint64(start[0] + x) * np.uint64(0x9E3779B97F4A7C15)
                h ^= np.uint64(start[1] + y) * np.uint64(0xC2B2AE3D27D4EB4F)
                h = _mix(h + np.uint64(start[2] + z) * np.uint64(0x165667B19E3779F9))
                total = (
                    (h & np.uint64(255))
                    + ((h >> np.uint64(8)) & np.uint64(255))
                    + ((h >> np.uint64(16)) & np.uint64(255))
                    + ((h >> np.uint64(24)) & np.uint64(255))
                )
                # The sum of four bytes is bell-shaped, with a deviation of 147.8 round 510.
                grey += noise * (np.float32(total) - np.float32(510.0)) * np.float32(1.0 / 147.8)
                grey = (grey - np.float32(128.0)) * np.float32(gain[z]) + np.float32(128.0 + offset[z])
                out[z, y, x] = np.uint8(min(max(grey + half_one, zero), np.float32(255.0)))


@numba.njit(cache=True, inline="always")
def _body(
    u,
    v,
    z_nm,
    kind,
    owner,
    uneven,
    nucleus,
    nucleolus,
    grain,
    fibre,
    clump,
    blob,
    tone,
    contrast,
    width,
):
    """Grey level inside a body: cytoplasm, nucleus with its envelope and chromatin, nucleolus."""
    zero, one = np.float32(0.0), np.float32(1.0)
    envelope = _in_nucleus(u, v, z_nm, uneven, nucleus, owner)
    if envelope > zero:
        grey = np.float32(146.0) + np.float32(14.0) * grain + np.float32(6.0) * fibre
        # Endoplasmic reticulum, and mitochondria.
        grey -= np.float32(20.0) * max(zero, one - abs(fibre) * np.float32(7.0))
        if blob > np.float32(0.52):
            grey -= np.float32(40.0) * min(one, (blob - np.float32(0.52)) * np.float32(9.0))
        if kind == 1:
            grey -= np.float32(26.0)
    else:
        grey = np.float32(166.0) + np.float32(9.0) * clump + np.float32(5.0) * grain
        if kind == 1:
            # Glia: clumped chromatin, most of it below the envelope.
            rim = _line(envelope, np.float32(260.0))
            grey -= np.float32(24.0) + np.float32(40.0) * rim
            grey -= np.float32(34.0) * max(zero, min(one, (clump - np.float32(0.1)) * np.float32(5.0)))
        else:
            grey -= np.float32(20.0) * max(zero, min(one, (clump - np.float32(0.35)) * np.float32(6.0)))
            dx, dy, dz = (
                np.float32(u - nucleolus[owner, 0]),
                np.float32(v - nucleolus[owner, 1]),
                np.float32(z_nm - nucleolus[owner, 2]),
            )
            d = np.sqrt(dx * dx + dy * dy + dz * dz) - np.float32(nucleolus[owner, 3]) * (
                one + np.float32(0.22) * fibre
            )
            if d < np.float32(80.0):
                dark = min(one, (np.float32(80.0) - d) * np.float32(1.0 / 160.0))
                grey += dark * (np.float32(84.0) + np.float32(10.0) * grain - grey)
    grey -= np.float32(56.0) * contrast * _line(envelope, width)
    return grey + np.float32(4.0) * tone
