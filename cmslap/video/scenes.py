"""Where scenes begin: every so many frames, or where the picture changes at once."""

from collections.abc import Iterable

import numpy as np

_BINS = 64  # of the histogram of luma
_CUT = 0.4  # share of the pixels that change their bin
_SHORTEST = 8  # frames; a flash is no scene of its own


def fixed(frames: int, length: int) -> list[int]:
    """The first frame of each scene of ``length``; what is left over belongs to the last."""
    starts = list(range(0, frames, length))
    return starts[:-1] if len(starts) > 1 and frames - starts[-1] < min(length, _SHORTEST) else starts


def cuts(lumas: Iterable[np.ndarray], white: int) -> list[int]:
    """The first frame of each scene, by the histograms of luma of successive frames."""
    starts, before = [], None
    for number, luma in enumerate(lumas):
        now = np.bincount((luma.ravel().astype(np.uint32) * _BINS) // (white + 1), minlength=_BINS) / luma.size
        if before is None or (np.abs(now - before).sum() / 2 > _CUT and number - starts[-1] >= _SHORTEST):
            starts.append(number)
        before = now
    return starts
