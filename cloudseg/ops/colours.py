"""Colour codes: many labels of a section as a few pictures of a few colours, and back.

After Meirovitch et al. 2019 (3C, arXiv 1812.01157): with ``k`` pictures of ``l`` colours each, ``l ** k`` labels can be
told apart, so a network that carries colours from one section to the next is run ``k`` times instead of once for each
object. Codes are drawn at random, so labels that are confused in one picture differ in others; more pictures than
needed make that safer. Which details the publication leaves open (fresh codes at each section, candidates from the
surroundings only) is project-defined.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import numpy.typing as npt

from cloudseg.errors import SpecError

Places = npt.NDArray[np.int32]
Codes = npt.NDArray[np.int8]
LogProbabilities = npt.NDArray[np.float32]


def n_digits(n_labels: int, *, n_colours: int, redundancy: int) -> int:
    """Return how many pictures tell ``n_labels`` apart, with ``redundancy`` more than needed.

    Examples
    --------
    >>> n_digits(256, n_colours=4, redundancy=0), n_digits(257, n_colours=4, redundancy=2)
    (4, 7)
    """
    needed = 1
    while n_colours**needed < n_labels:
        needed += 1
    return needed + redundancy


def random_codes(n_labels: int, *, n_colours: int, n_digits: int, seed: tuple[int, ...]) -> Codes:
    """Return ``(n_labels, n_digits)`` colours from 0, no two rows alike.

    Raises
    ------
    SpecError
        If there are more labels than codes.
    """
    n_codes = n_colours**n_digits
    if n_labels > n_codes:
        raise SpecError(
            f"{n_labels} labels cannot be told apart by {n_digits} pictures of {n_colours} colours, which make "
            f"{n_codes} codes; take at least {math.ceil(math.log(max(n_labels, 2), n_colours) - 1e-9)} pictures, or "
            "larger blocks of fewer labels"
        )
    rng = np.random.default_rng(seed)
    if n_codes < 2**20:
        numbers = rng.choice(n_codes, n_labels, replace=False)
    else:  # so many codes that drawing again what came twice is quick
        numbers = np.zeros(0, np.int64)
        while len(numbers) < n_labels:
            more = rng.integers(0, min(n_codes, 2**62), n_labels)
            numbers = np.concatenate([numbers, more])
            _, first = np.unique(numbers, return_index=True)
            numbers = numbers[np.sort(first)]
        numbers = numbers[:n_labels]
    digits = [numbers // n_colours**j % n_colours for j in range(n_digits)]
    return np.stack(digits, axis=1).astype(np.int8)


def paint(places: Places, codes: Codes) -> npt.NDArray[np.int8]:
    """Return ``(n_digits, x, y)`` colours of a section; -1 where there is no label.

    Parameters
    ----------
    places
        ``(x, y)``: row of ``codes`` plus 1; 0 is background.
    codes
        From :func:`random_codes`.
    """
    rows = np.concatenate([np.full((1, codes.shape[1]), -1, np.int8), codes])
    return np.moveaxis(rows[places], -1, 0)


def decode(
    log_p: LogProbabilities, codes: Codes, before: Places, *, cell: int, min_posterior: float
) -> Places:
    """Return the label of each pixel of the next section: the code that all pictures together like best.

    Parameters
    ----------
    log_p
        ``(n_digits, n_colours + 1, x, y)``: logarithms of the probabilities of each colour; the last is background.
    codes, before
        The codes, and the labels of the section before, as for :func:`paint`.
    cell
        A pixel can only get a label that lies in its own or one of the eight surrounding squares of ``cell`` pixels
        in the section before.
    min_posterior
        Share of the best candidate among all and background, below which a pixel stays background.
    """
    n, n_out, nx, ny = log_p.shape
    if codes.shape[1] != n or before.shape != (nx, ny) or (codes.size and codes.max() >= n_out - 1):
        raise SpecError(
            f"{n} pictures of {n_out - 1} colours over {(nx, ny)} pixels do not fit codes of shape {codes.shape} and a "
            f"section of {before.shape}"
        )
    first, listed = _candidates(before, cell, len(codes))
    after = np.zeros(before.shape, np.int32)
    # Digits and colours last: what one pixel needs lies together.
    _decode(
        np.ascontiguousarray(log_p.transpose(2, 3, 0, 1)),
        codes,
        first,
        listed,
        cell,
        np.float32(math.log(min_posterior)) if min_posterior > 0 else np.float32(-np.inf),
        after,
    )
    return after


def _candidates(
    before: Places, cell: int, n_labels: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Return which labels lie in or around each square: where its list begins, and all lists."""
    nx, ny = (-(-n // cell) for n in before.shape)
    x, y = np.nonzero(before)
    pairs = [np.zeros(0, np.int64)]
    for dx in (-1, 0, 1):
        for dy in (-1, 0, 1):
            i, j = x // cell + dx, y // cell + dy
            inside = (i >= 0) & (i < nx) & (j >= 0) & (j < ny)
            pairs.append(np.unique((i * ny + j)[inside] * (n_labels + 1) + before[x, y][inside]))
    found = np.unique(np.concatenate(pairs))
    first = np.searchsorted(found // (n_labels + 1), np.arange(nx * ny + 1))
    return first, (found % (n_labels + 1)).astype(np.int32)


@numba.njit(cache=True)
def _decode(log_p, codes, first, listed, cell, log_least, after):  # type: ignore[no-untyped-def]
    nx, ny, n, n_out = log_p.shape
    cells_y = -(-ny // cell)
    for x in range(nx):
        for y in range(ny):
            none = np.float32(0)
            for j in range(n):
                none += log_p[x, y, j, n_out - 1]
            best, place = none, 0
            at = (x // cell) * cells_y + y // cell
            for c in range(first[at], first[at + 1]):
                label = listed[c]
                score = np.float32(0)
                for j in range(n):
                    score += log_p[x, y, j, codes[label - 1, j]]
                if score > best:
                    best, place = score, label
            if place == 0:
                continue
            total = np.exp(none - best)
            for c in range(first[at], first[at + 1]):
                label = listed[c]
                score = np.float32(0)
                for j in range(n):
                    score += log_p[x, y, j, codes[label - 1, j]]
                total += np.exp(score - best)
            if -np.log(total) >= log_least:
                after[x, y] = place
