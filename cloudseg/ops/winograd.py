"""Convolutions of 3 x 3 x 3 by fewer multiplications: Winograd's F(3, 3) on each axis, in single precision.

A tile of 3^3 outputs is 125 products of transformed values instead of 729 (Lavin and Gray 2016, arXiv 1509.09308;
points 0, 1, -1, 2 and infinity). The sums differ from direct ones by some 1e-5 of the largest value. Features lie last,
so that they fill the vector registers; the products are small matrix products, of which numpy's libraries are fond.
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

# Rows of tiles that are multiplied at once: transformed values and products of four rows stay in the cache of a core.
_ROWS = 4


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
        row = (3 * self.n_tiles[2] + 2) * n_features
        self._sizes = (5 * (3 * _ROWS + 2) * row, 25 * row, 125 * _ROWS * self.n_tiles[2] * n_features)
        self._first = np.empty(self._sizes[0], np.float32)
        self._second = np.empty(self._sizes[1], np.float32)
        self._values = np.empty(self._sizes[2], np.float32)
        self._products = np.empty(self._sizes[2], np.float32)

    def volume(self, n_features: int) -> Floats:
        """Return zeros ``(x, y, z, c)`` with the rim that :meth:`convolve` wants; :meth:`inside` is what one sees."""
        x, y, z = (3 * n + 2 for n in self.n_tiles)
        return np.zeros((x, y, z, n_features), np.float32)

    def inside(self, volume: Floats) -> Floats:
        """Return the view of ``volume`` without its rim: ``shape`` voxels."""
        x, y, z = self.shape
        return volume[1 : x + 1, 1 : y + 1, 1 : z + 1]

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
        x_in, x_out = (a.reshape(a.shape[0], a.shape[1], -1) for a in (source, out))
        for i in range(n_x):
            for j in range(0, n_y, _ROWS):
                rows = min(_ROWS, n_y - j)
                n = 125 * rows * n_z
                values = self._values[: n * n_in].reshape(125, rows * n_z, n_in)
                products = self._products[: n * n_out].reshape(125, rows * n_z, n_out)
                _enter(x_in, i, j, rows, n_in, relu, self._first, self._second, values)
                np.matmul(values, kernel.weights, out=products)
                _leave(products, i, j, rows, kernel.bias, add, self.shape, self._first, self._second, x_out)


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
    n_z = values.shape[1] // rows
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
                for t in range(n_z):
                    at = row * n_z + t
                    v0, v1, v2 = values[place, at], values[place + 1, at], values[place + 2, at]
                    v3, v4 = values[place + 3, at], values[place + 4, at]
                    k = 3 * t * n_in
                    x0, x1, x2 = (
                        line[k : k + n_in],
                        line[k + n_in : k + 2 * n_in],
                        line[k + 2 * n_in : k + 3 * n_in],
                    )
                    x3, x4 = line[k + 3 * n_in : k + 4 * n_in], line[k + 4 * n_in : k + 5 * n_in]
                    for c in range(n_in):
                        d0, d1, d2, d3, d4 = x0[c], x1[c], x2[c], x3[c], x4[c]
                        v0[c] = 2 * (d0 - d2) + d3 - d1
                        v1[c] = d3 - d2 - 2 * d1
                        v2[c] = 2 * d1 - 3 * d2 + d3
                        v3[c] = d3 - d1
                        v4[c] = 2 * (d1 - d3) + d4 - d2


@numba.njit(cache=True, fastmath=True, boundscheck=False)
def _leave(products, i, j, rows, bias, add, shape, first, second, out):  # type: ignore[no-untyped-def]
    """Transform products back, along z, then y, then x; add the bias; write what lies inside."""
    n_out = products.shape[2]
    n_z = products.shape[1] // rows
    length = 3 * n_z * n_out
    a = first[: 25 * length].reshape(5, 5, length)
    b = second[: 15 * length].reshape(5, 3, length)
    used = shape[2] * n_out
    for row in range(rows):
        for p in range(5):
            for q in range(5):
                line, place = a[p, q], 5 * (5 * p + q)
                for t in range(n_z):
                    at = row * n_z + t
                    m0, m1, m2 = products[place, at], products[place + 1, at], products[place + 2, at]
                    m3, m4 = products[place + 3, at], products[place + 4, at]
                    k = 3 * t * n_out
                    y0, y1, y2 = (
                        line[k : k + n_out],
                        line[k + n_out : k + 2 * n_out],
                        line[k + 2 * n_out : k + 3 * n_out],
                    )
                    for c in range(n_out):
                        s, d = m1[c] + m2[c], m1[c] - m2[c]
                        y0[c] = m0[c] + s + m3[c]
                        y1[c] = d + 2 * m3[c]
                        y2[c] = s + 4 * m3[c] + m4[c]
        for p in range(5):
            m0, m1, m2, m3, m4 = a[p, 0], a[p, 1], a[p, 2], a[p, 3], a[p, 4]
            y0, y1, y2 = b[p, 0], b[p, 1], b[p, 2]
            for k in range(length):
                s, d = m1[k] + m2[k], m1[k] - m2[k]
                y0[k] = m0[k] + s + m3[k]
                y1[k] = d + 2 * m3[k]
                y2[k] = s + 4 * m3[k] + m4[k]
        for r in range(3):
            y = 3 * (j + row) + r
            if y >= shape[1]:
                continue
            m0, m1, m2, m3, m4 = b[0, r], b[1, r], b[2, r], b[3, r], b[4, r]
            for h in range(3):
                x = 3 * i + h
                if x >= shape[0]:
                    continue
                line = out[x + 1, y + 1, n_out : n_out + used]
                f0 = np.float32(1 if h == 0 else 0)
                f12 = np.float32(-1 if h == 1 else 1)
                f3 = np.float32(2**h)
                f4 = np.float32(1 if h == 2 else 0)
                keep = np.float32(1 if add else 0)
                for z in range(shape[2]):
                    k = z * n_out
                    for c in range(n_out):
                        line[k + c] = (
                            keep * line[k + c]
                            + bias[c]
                            + (f0 * m0[k + c] + m1[k + c] + f12 * m2[k + c] + f3 * m3[k + c] + f4 * m4[k + c])
                        )
