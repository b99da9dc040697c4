"""Stages that work at the same time."""

import collections
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
_MOST_WORKERS = 4  # each of which holds an item's memory
_PATIENCE = 0.1  # seconds until a stage looks whether anybody still wants what it makes


def ahead(items: Iterable[T], most: int = 4) -> Iterator[T]:
    """``items``, made by a thread of their own, at most ``most`` of them before they are wanted.

    FFmpeg and PyTorch work without Python's lock, so decoding, the network and encoding overlap.
    """
    made: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(most)
    unwanted = threading.Event()
    end = StopIteration()

    def put(item: T | None, error: BaseException | None) -> None:
        while not unwanted.is_set():
            try:
                made.put((item, error), timeout=_PATIENCE)
                return
            except queue.Full:
                pass

    def make() -> None:
        try:
            for item in items:
                put(item, None)
                if unwanted.is_set():
                    return
            put(None, end)
        except BaseException as error:
            put(None, error)

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if error is end:
                return
            if error is not None:
                raise error
            yield item
    finally:
        unwanted.set()
        thread.join()


def side_by_side(make: Callable[..., T], items: Iterable[tuple], workers: int | None = None) -> Iterator[T]:
    """``make(*item)`` for all items, in order, by ``workers`` threads that share PyTorch's; by default as many, or 4.

    An item a thread, as threads that share an item wait for each other wherever the processor has other work too.
    """
    threads = torch.get_num_threads()
    workers = workers or min(threads, _MOST_WORKERS)
    share = max(1, threads // workers)
    try:
        with ThreadPoolExecutor(workers, initializer=lambda: torch.set_num_threads(share)) as pool:
            made = collections.deque()
            for item in items:
                made.append(pool.submit(make, *item))
                if len(made) > 2 * workers:
                    yield made.popleft().result()
            while made:
                yield made.popleft().result()
    finally:
        torch.set_num_threads(threads)  # what further threads begin with
