"""Convolutions of 3 x 3 x 3 by fewer multiplications: Winograd's F(3, 3) on each axis, in single precision.

A tile of 3^3 outputs is 125 products of transformed values instead of 729 (Lavin and Gray 2016, arXiv 1509.09308;
points 0, 1, -1, 2 and infinity). The sums differ from direct ones by some 1e-5 of the largest value. Features lie last,
so that they fill the vector registers; the products are small matrix products, of which numpy's libraries are fond.
Places along z are stored by their remainder by three (0, 3, 6, ..., 1, 4, ..., 2, 5, ...): what tiles that follow each
other need lies side by side then.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from cloudseg.geometry import XYZ

Floats = npt.NDArray[np.float32]

# What a kernel of three becomes, at the five points.
_G = np.array([[1 / 2, 0, 0], [-1 / 2] * 3, [-1 / 6, 1 / 6, -1 / 6], [1 / 6, 1 / 3, 2 / 3], [0, 0, 1]])

# Rows of tiles that are multiplied at once: transformed values and products of three rows stay in the cache of a core.
_ROWS = 3


@dataclass(frozen=True, slots=True, eq=False)
class Kernel:
    """A kernel, transformed once.

    Attributes
    ----------
    weights
        ``(125, n_in, n_out)`` float32.
    bias
        ``(n_out,)`` float32.
    """

    weights: Floats
    bias: Floats

    @classmethod
    def of(cls, weights: npt.NDArray[np.floating], bias: npt.NDArray[np.floating]) -> Kernel:
        """Transform ``(n_out, n_in, 3, 3, 3)``, axes x, y, z last."""
        n_out, n_in = weights.shape[:2]
        w = np.einsum("ai,bj,ck,oqijk->abcqo", _G, _G, _G, weights.astype(np.float64), optimize=True)
        return cls(np.ascontiguousarray(w.reshape(125, n_in, n_out), np.float32), bias.astype(np.float32))


class Workspace:
    """Memory for convolutions over volumes of one shape; not to be shared between threads.

    Parameters
    ----------
    shape
        Voxels along x, y, z.
    n_features
        The most that a convolution reads or writes.
    """

    def __init__(self, shape: XYZ, *, n_features: int) -> None:
        self.shape = shape
        self.n_tiles: XYZ = (-(-shape[0] // 3), -(-shape[1] // 3), -(-shape[2] // 3))
        n_z = self.n_tiles[2]
        row = 3 * (n_z + 1) * n_features
        self._first = np.empty(5 * (3 * _ROWS + 2) * row, np.float32)
        self._second = np.empty(25 * row, np.float32)
        self._values = np.empty(125 * _ROWS * n_z * n_features, np.float32)
        self._products = np.empty(125 * _ROWS * n_z * n_features, np.float32)
        z = np.arange(1, shape[2] + 1)
        self._places = z % 3 * (n_z + 1) + z // 3

    def volume(self, n_features: int) -> Floats:
        """Return a volume of zeros for :meth:`convolve`; what is in it only :meth:`put` and :meth:`get` know."""
        x, y, z = self.n_tiles
        return np.zeros((3 * x + 2, 3 * y + 2, 3 * (z + 1), n_features), np.float32)

    def put(self, volume: Floats, data: Floats) -> None:
        """Write ``(x, y, z, c)`` into a volume."""
        volume[1 : self.shape[0] + 1, 1 : self.shape[1] + 1, self._places] = data

    def get(self, volume: Floats) -> Floats:
        """Return ``(x, y, z, c)`` of a volume."""
        data: Floats = volume[1 : self.shape[0] + 1, 1 : self.shape[1] + 1, self._places]
        return data

    def convolve(self, source: Floats, kernel: Kernel, out: Floats, *, relu: bool, add: bool) -> None:
        """Write the convolution of ``source`` with zeros round it, and the bias, into ``out``.

        Parameters
        ----------
        source, out
            Two volumes of :meth:`volume`, with as many features as the kernel reads and writes.
        kernel
            Weights and bias.
        relu
            Whether negative values of the source count as 0.
        add
            Whether the result is added to what is in ``out``.
        """
        n_in, n_out = kernel.weights.shape[1:]
        n_x, n_y, n_z = self.n_tiles
        bias = np.tile(kernel.bias, n_z)
        x_in, x_out = (a.reshape(a.shape[0], a.shape[1], -1) for a in (source, out))
        for i in range(n_x):
            for j in range(0, n_y, _ROWS):
                rows = min(_ROWS, n_y - j)
                n = 125 * rows * n_z
                values = self._values[: n * n_in].reshape(125, rows * n_z, n_in)
                products = self._products[: n * n_out].reshape(125, rows * n_z, n_out)
                _enter(x_in, i, j, rows, n_in, relu, self._first, self._second, values)
                np.matmul(values, kernel.weights, out=products)
                _leave(products, i, j, rows, bias, add, self.shape, self._first, self._second, x_out)


@numba.njit(cache=True, fastmath=True, boundscheck=False)
def _enter(x, i, j, rows, n_in, relu, first, second, values):  # type: ignore[no-untyped-def]
    """Transform the tiles of some rows: along x, then y, then z."""
    length = x.shape[2]
    n_y = 3 * rows + 2
    a = first[: 5 * n_y * length].reshape(5, n_y, length)
    b = second[: 25 * length].reshape(5, 5, length)
    for q in range(n_y):
        x0, x1, x2 = x[3 * i, 3 * j + q], x[3 * i + 1, 3 * j + q], x[3 * i + 2, 3 * j + q]
        x3, x4 = x[3 * i + 3, 3 * j + q], x[3 * i + 4, 3 * j + q]
        a0, a1, a2, a3, a4 = a[0, q], a[1, q], a[2, q], a[3, q], a[4, q]
        low = np.float32(0) if relu else np.float32(-np.inf)
        for k in range(length):
            d0, d1, d2 = max(x0[k], low), max(x1[k], low), max(x2[k], low)
            d3, d4 = max(x3[k], low), max(x4[k], low)
            a0[k] = 2 * (d0 - d2) + d3 - d1
            a1[k] = d3 - d2 - 2 * d1
            a2[k] = 2 * d1 - 3 * d2 + d3
            a3[k] = d3 - d1
            a4[k] = 2 * (d1 - d3) + d4 - d2
    part = length // 3
    v = values.reshape(125, rows, part - n_in)
    for row in range(rows):
        for p in range(5):
            x0, x1, x2 = a[p, 3 * row], a[p, 3 * row + 1], a[p, 3 * row + 2]
            x3, x4 = a[p, 3 * row + 3], a[p, 3 * row + 4]
            b0, b1, b2, b3, b4 = b[p, 0], b[p, 1], b[p, 2], b[p, 3], b[p, 4]
            for k in range(length):
                d0, d1, d2, d3, d4 = x0[k], x1[k], x2[k], x3[k], x4[k]
                b0[k] = 2 * (d0 - d2) + d3 - d1
                b1[k] = d3 - d2 - 2 * d1
                b2[k] = 2 * d1 - 3 * d2 + d3
                b3[k] = d3 - d1
                b4[k] = 2 * (d1 - d3) + d4 - d2
        for p in range(5):
            for q in range(5):
                line, place = b[p, q], 5 * (5 * p + q)
                v0, v1, v2 = v[place, row], v[place + 1, row], v[place + 2, row]
                v3, v4 = v[place + 3, row], v[place + 4, row]
                x0, x1, x2 = line[:part], line[part : 2 * part], line[2 * part :]
                x3, x4 = x0[n_in:], x1[n_in:]
                for k in range(part - n_in):
                    d0, d1, d2, d3, d4 = x0[k], x1[k], x2[k], x3[k], x4[k]
                    v0[k] = 2 * (d0 - d2) + d3 - d1
                    v1[k] = d3 - d2 - 2 * d1
                    v2[k] = 2 * d1 - 3 * d2 + d3
                    v3[k] = d3 - d1
                    v4[k] = 2 * (d1 - d3) + d4 - d2


@numba.njit(cache=True, fastmath=True, boundscheck=False)
def _leave(products, i, j, rows, bias, add, shape, first, second, out):  # type: ignore[no-untyped-def]
    """Transform products back, along z, then y, then x; add the bias; write what lies inside."""
    n_out = products.shape[2]
    part = bias.size
    m = products.reshape(125, rows, part)
    a = first[: 75 * part].reshape(5, 5, 3 * part)
    b = second[: 45 * part].reshape(5, 3, 3 * part)
    one, four = np.float32(1), np.float32(4)
    keep = np.float32(1 if add else 0)
    for row in range(rows):
        for p in range(5):
            for q in range(5):
                line, place = a[p, q], 5 * (5 * p + q)
                m0, m1, m2 = m[place, row], m[place + 1, row], m[place + 2, row]
                m3, m4 = m[place + 3, row], m[place + 4, row]
                y0, y1, y2 = line[:part], line[part : 2 * part], line[2 * part :]
                for k in range(part):
                    s, d = m1[k] + m2[k], m1[k] - m2[k]
                    y0[k] = m0[k] + s + m3[k]
                    y1[k] = d + 2 * m3[k]
                    y2[k] = s + four * m3[k] + m4[k]
        for p in range(5):
            m0, m1, m2, m3, m4 = a[p, 0], a[p, 1], a[p, 2], a[p, 3], a[p, 4]
            y0, y1, y2 = b[p, 0], b[p, 1], b[p, 2]
            for k in range(3 * part):
                s, d = m1[k] + m2[k], m1[k] - m2[k]
                y0[k] = m0[k] + s + m3[k]
                y1[k] = d + 2 * m3[k]
                y2[k] = s + four * m3[k] + m4[k]
        for r in range(3):
            y = 3 * (j + row) + r
            for h in range(3):
                x = 3 * i + h
                if x >= shape[0] or y >= shape[1]:
                    continue
                f0, f12 = one if h == 0 else one - one, one if h != 1 else -one
                f3, f4 = np.float32(2**h), one if h == 2 else one - one
                for e in range(3):  # the place in the tile along z; its remainder in the volume is one more
                    used = (shape[2] - e + 2) // 3 * n_out
                    at = (e + 1) % 3 * (part + n_out) + (n_out if e == 2 else 0)
                    line = out[x + 1, y + 1, at : at + used]
                    low = e * part
                    m0, m1, m2 = (
                        b[0, r, low : low + used],
                        b[1, r, low : low + used],
                        b[2, r, low : low + used],
                    )
                    m3, m4 = b[3, r, low : low + used], b[4, r, low : low + used]
                    for k in range(used):
                        line[k] = (
                            keep * line[k]
                            + bias[k]
                            + (f0 * m0[k] + m1[k] + f12 * m2[k] + f3 * m3[k] + f4 * m4[k])
                        )
