"""Weights as few bytes: a mask of the zeros, K-means indices of the rest, a range coder over both.

The coder's model is a table of integers that add up to 2^16. As fractions of that they, and all that the coder makes
of them, are exact in double precision, so every machine decodes the same bits.
"""

import struct
import warnings

import numpy as np

from cmslap.errors import UserError

_UNIT = 2**16  # what the frequencies of a model add up to
_HEAD = struct.Struct("<IIHH")  # values, values that are not zero, centroids, the largest cluster's size


class CodingError(UserError, ValueError):
    """Bytes that do not hold what they claim to."""


def encode(
    values: np.ndarray,  # [n] float32
    centroids: int,
) -> bytes:
    """``values`` with those that are not zero rounded to at most ``centroids`` values of float16, as bytes."""
    import constriction

    kept = values != 0
    book, index = _cluster(values[kept], centroids)
    counts = np.bincount(index, minlength=len(book))
    largest = int(counts.max(initial=0))
    coder = constriction.stream.queue.RangeEncoder()
    _put(coder, kept.astype(np.int32), np.array([len(values) - len(index), len(index)]))
    _put(coder, counts - 1, np.ones(max(largest, 1)))
    _put(coder, index, counts)
    head = _HEAD.pack(len(values), len(index), len(book), largest)
    return head + book.tobytes() + coder.get_compressed().astype("<u4").tobytes()


def decode(
    data: bytes,
    length: int,  # how many values there must be
) -> np.ndarray:  # [length] float32
    """The values that :func:`encode` rounded to. Raises :class:`CodingError`."""
    import constriction

    if len(data) < _HEAD.size:
        raise CodingError("its weights end early")
    total, nonzero, size, largest = _HEAD.unpack_from(data)
    words = len(data) - _HEAD.size - 2 * size
    fits = nonzero <= total == length and size <= nonzero and size <= _UNIT // 2
    if not fits or words < 0 or words % 4 or (size == 0) != (nonzero == 0) or not nonzero <= size * largest:
        raise CodingError(f"its weights claim {nonzero} of {total} values in {size} clusters; {length} are expected")
    book = np.frombuffer(data, "<f2", size, _HEAD.size).astype(np.float32)
    coder = constriction.stream.queue.RangeDecoder(np.frombuffer(data, "<u4", -1, _HEAD.size + 2 * size))
    kept = _take(coder, length, np.array([length - nonzero, nonzero])).astype(bool)
    counts = _take(coder, size, np.ones(max(largest, 1))) + 1
    index = _take(coder, nonzero, counts)
    if kept.sum() != nonzero or counts.sum() != nonzero or not np.isfinite(book).all():
        raise CodingError("its weights are not what an encoder writes")
    values = np.zeros(length, np.float32)
    values[kept] = book[index]
    return values


def _cluster(values: np.ndarray, centroids: int) -> tuple[np.ndarray, np.ndarray]:
    """Ascending centroids in float16, none of them unused, and the index of the nearest one for each value."""
    from scipy.cluster.vq import kmeans2, vq

    if not len(values):
        return np.empty(0, "<f2"), np.empty(0, np.int32)
    points = values.astype(np.float64)[:, None]
    book = np.unique(values.astype("<f2"))
    if len(book) > centroids:
        start = np.unique(np.quantile(points, (np.arange(centroids) + 0.5) / centroids))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a cluster that runs empty: it is left out below
            book, _ = kmeans2(points, start[:, None], iter=30, minit="matrix")
        book = np.unique(book.astype("<f2"))
    index, _ = vq(points, book.astype(np.float64)[:, None])
    used, index = np.unique(index, return_inverse=True)
    return book[used], index.astype(np.int32)


def _model(counts: np.ndarray) -> np.ndarray:
    """Frequencies of 1 and more, in proportion to ``counts`` nearly, as exact fractions of 2^16."""
    counts = counts.astype(np.int64)
    frequencies = np.maximum(1, counts * (_UNIT - len(counts)) // counts.sum())
    frequencies[np.argmax(frequencies)] += _UNIT - frequencies.sum()
    return frequencies / _UNIT


def _put(coder: object, symbols: np.ndarray, counts: np.ndarray) -> None:
    if len(symbols) and np.count_nonzero(counts) > 1:  # else there is nothing to tell
        coder.encode(symbols.astype(np.int32), _categorical(counts))


def _take(coder: object, number: int, counts: np.ndarray) -> np.ndarray:
    if not number or np.count_nonzero(counts) <= 1:
        return np.full(number, np.argmax(counts) if len(counts) else 0, np.int64)
    try:
        return coder.decode(_categorical(counts), number).astype(np.int64)
    except (AssertionError, ValueError) as error:
        raise CodingError("its weights are not what an encoder writes") from error


def _categorical(counts: np.ndarray) -> object:
    import constriction

    return constriction.stream.model.Categorical(_model(counts), perfect=False)
