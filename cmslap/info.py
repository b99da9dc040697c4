"""``cmslap info``: versions, devices, which backends are ready and why the others are not."""

import argparse
import platform
from collections.abc import Iterator

from cmslap import __version__


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("info", help="versions, devices, backends", description=__doc__.partition(": ")[2])
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    rows = list(_rows())
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
    return 0


def _rows() -> Iterator[tuple[str, str]]:
    import torch

    from cmslap.ops.dispatch import BACKENDS

    yield "cmslap", __version__
    yield "Python", f"{platform.python_version()} on {platform.platform()}"
    cuda = "without CUDA" if torch.version.cuda is None else f"with CUDA {torch.version.cuda}"
    yield "PyTorch", f"{torch.__version__}, {cuda}"
    threads = torch.get_num_threads()
    yield "cpu", f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {threads} threads"
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        memory = device.total_memory / 2**30
        yield f"cuda:{index}", f"{device.name}, sm_{device.major}{device.minor}, {memory:.0f} GiB"
    for backend in BACKENDS:
        kernels = f"ready: {', '.join(backend.forward)}" + (f" ({backend.only_forced})" if backend.only_forced else "")
        yield f"backend {backend.name}", f"no: {backend.missing}" if backend.missing else kernels
