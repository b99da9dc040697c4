"""Who does the work: ours, and what a user would otherwise run. Each baseline makes of a piece of work a call to time.

A baseline that is not installed raises ImportError, a precision that the processor lacks PrecisionError. Plain PyTorch
is our own operations' reference backend, which the compilers and exporters see too.
"""

from __future__ import annotations

import copy
import functools
import io
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor, nn

from bench.speed.timing import Implementation
from bench.speed.work import Work
from cmslap import ops
from cmslap.compiler import accelerate
from cmslap.devices import inference_autocast
from cmslap.ops.dispatch import BACKENDS, BackendError, prefer_backend

RUNTIMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "tensorrt": "TensorRT", "triton": "Triton"}


def versions() -> dict[str, str]:
    """Of the runtimes that are installed besides PyTorch, by name."""
    installed = {}
    for package, name in RUNTIMES.items():
        with suppress(PackageNotFoundError):
            installed[name] = version(package)
    return installed


@dataclass(frozen=True)
class Baseline:
    """One who does the work.

    ``environment``, if not None, has variables that are read when a process starts: this baseline has one of its own.
    """

    name: str
    prepare: Callable[[Work], Implementation]
    layout: torch.memory_format = torch.channels_last
    environment: Mapping[str, str] | None = None


def on(backend: str, call: Implementation) -> Implementation:
    """``call`` with a backend of ours forced."""

    def run() -> object:
        with ops.use_backend(backend):
            return call()

    return run


def plain(work: Work) -> Implementation:
    return on("reference", work.drive(work.reference))


class Preferring:
    """``call`` with a backend of ours preferred; ``backends`` names those that ran in the last call, by operation."""

    def __init__(self, backend: str, call: Implementation) -> None:
        self.backend, self.call = backend, call
        self.backends: dict[str, list[str]] = {}

    def __call__(self) -> object:
        with prefer_backend(self.backend) as ran:
            value = self.call()
        if ran and not any(self.backend in names for names in ran.values()):
            raise BackendError(f"backend {self.backend} can't run this: others ran {', '.join(ran)}")
        self.backends = {operation: sorted(names) for operation, names in ran.items()}
        return value


def backends_of(call: Implementation) -> dict[str, list[str]]:
    """Which backends of ours ran a call's operations, where it is one that knows."""
    return getattr(call, "backends", {})


def _prefer(backend: str, work: Work) -> Implementation:
    return Preferring(backend, work.drive(work.function))


def backend(name: str) -> Baseline:
    """One backend of ours, and for the operations that it can't run the best other one."""
    return Baseline(f"cmslap {name}", functools.partial(_prefer, name))


def ours(device: torch.device, label: str = "cmslap", operation: str | None = None) -> list[Baseline]:
    """On a CPU its kernels, called ``label``; on a GPU every backend for it that is built here, the best first.

    With an operation's name, those that have a kernel of it.
    """
    if device.type == "cpu":
        return [replace(backend("cpu"), name=label)]
    able = {each.name for each in BACKENDS if operation is None or operation in each.forward}
    return [backend(name) for name in gpu_backends() if name in able]


def _run_in_precision(precision: str, work: Work) -> Implementation:
    call = _prefer("cpu", work)

    def run() -> object:
        with inference_autocast(precision, torch.device("cpu")):
            return call()

    return run


def in_precision(precision: str) -> Baseline:
    """Our CPU kernels on float32 inputs, with features of another precision."""
    return Baseline("cmslap", functools.partial(_run_in_precision, precision))


def _accelerate(work: Work) -> Implementation:
    network = copy.deepcopy(work.function)
    accelerate(network)
    return work.drive(network)


ACCELERATED = Baseline("cmslap", _accelerate)  # of a network in plain PyTorch


def gpu_backends() -> list[str]:
    return [backend.name for backend in BACKENDS if backend.name not in ("cpu", "reference") and not backend.missing]


EAGER = Baseline("eager", plain)  # channels_last, the faster layout almost everywhere
EAGER_NCHW = Baseline("eager NCHW", plain, torch.contiguous_format)
# Keeps buffers for the next call, in large pages, as ours does; the C library asks the system for them every time.
KEPT_MEMORY = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in (("mmap_threshold", 2**32), ("trim_threshold", 2**33), ("hugetlb", 1))
)
EAGER_TUNED = Baseline("eager, tuned malloc", plain, environment={"GLIBC_TUNABLES": KEPT_MEMORY})


def _compile(mode: str, work: Work) -> Implementation:
    function = torch.compile(work.reference, mode=mode, dynamic=False, fullgraph=True)
    call = on("reference", work.drive(function))

    def run() -> object:
        torch.compiler.cudagraph_mark_step_begin()  # the last call's outputs may be overwritten
        return call()

    return run


def compiled(mode: str = "default") -> Baseline:
    """torch.compile in a mode; of "max-autotune" it replays CUDA graphs."""
    name = "torch.compile" if mode == "default" else f"torch.compile {mode}"
    return Baseline(name, functools.partial(_compile, mode))


class _Reference(nn.Module):
    """A network whose operations are plain PyTorch, whatever runs it: what exporters get."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        with ops.use_backend("reference"):
            return tuple(self.module(x))


@contextmanager
def _fixed_sizes() -> Iterator[None]:
    """For tracing: it warns of every size that becomes a constant, and the baselines' sizes are meant to be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        yield


def _arrays(work: Work) -> Iterator[object]:
    """A network's inputs as NumPy arrays, over and over."""
    return itertools.cycle([x.numpy() for (x,) in work.inputs])


def _onnxruntime(work: Work) -> Implementation:
    import onnxruntime

    model = io.BytesIO()
    with _fixed_sizes():
        torch.onnx.export(_Reference(work.function), work.inputs[0], model, dynamo=False, input_names=["x"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model.getvalue(), options, providers=["CPUExecutionProvider"])
    arrays = _arrays(work)
    return lambda: session.run(None, {"x": next(arrays)})


def _openvino(precision: str, work: Work) -> Implementation:
    import openvino

    x = work.inputs[0][0]
    with _fixed_sizes():
        converted = openvino.convert_model(_Reference(work.function), example_input=x, input=[x.shape])
    config = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    network = openvino.Core().compile_model(converted, "CPU", config)
    arrays = _arrays(work)
    return lambda: network(next(arrays))


def _tensorrt(work: Work) -> Implementation:
    import torch_tensorrt  # noqa: F401 - registers the compiler

    return on("reference", work.drive(torch.compile(work.function, backend="tensorrt", dynamic=False)))


ONNXRUNTIME = Baseline("ONNX Runtime", _onnxruntime, torch.contiguous_format)
OPENVINO = Baseline("OpenVINO", functools.partial(_openvino, "f32"), torch.contiguous_format)
OPENVINO_BF16 = Baseline("OpenVINO bf16", functools.partial(_openvino, "bf16"), torch.contiguous_format)
TENSORRT = Baseline("TensorRT", _tensorrt)


def _captured(name: str, work: Work) -> Implementation:
    """A CUDA graph for each input, which takes the launches' time out, as "max-autotune" does for its side."""
    call = _prefer(name, work)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in work.inputs:  # tunes, and makes what is made once for an input
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graphs: list[torch.cuda.CUDAGraph] = []
    for _ in work.inputs:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=graphs[0].pool() if graphs else None):
            call()
        graphs.append(graph)
    turns = itertools.cycle(graphs)

    def replay() -> None:
        next(turns).replay()

    replay.backends = call.backends
    return replay


def captured() -> list[Baseline]:
    """Ours as CUDA graphs, a backend each."""
    return [Baseline(f"cmslap graph {name}", functools.partial(_captured, name)) for name in gpu_backends()]


def keeps_memory_in_graph(name: str) -> bool:
    """Whether a baseline's memory lies in a CUDA graph, where the allocator does not count a call's."""
    return name.startswith("cmslap graph") or name == "torch.compile max-autotune"
