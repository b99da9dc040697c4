"""The GPU suite: CMS-LapSRN's operations, training step and inference in bfloat16, beside eager and compiled PyTorch.

Every row is set against the roofline's floor: the operations counted at the rate of a large matrix product measured in
the same run, or the bytes that must move (each activation read once and written once) at the rate of a large copy,
whichever takes longer. The activations of every case but the last are many times the size of a GPU's cache.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch import config as functorch_config

from cmslap import ops
from cmslap.benchmark.cpu import CONV_GFLOP
from cmslap.benchmark.timing import Case, Implementation, take_turns
from cmslap.models import CMSLapSRN
from cmslap.ops.choice import BACKENDS

CHANNELS = 64
DEPTH = 5
MAP_GB = 2 * CHANNELS * 1e-9  # of one bfloat16 activation, a pixel
MODES = ("default", "max-autotune")  # of torch.compile; the second replays CUDA graphs


@dataclass(frozen=True)
class Sizes:
    """What to measure on which device; the defaults are the paper's setting and maps of a million pixels."""

    device: torch.device
    matrix: int = 8192  # rows and columns
    copied: int = 2**30  # bytes
    batch: int = 16
    side: int = 256  # pixels of the operations' maps, along a side
    low: int = 64  # pixels along a side of the training step's input, an eighth of its HR patch
    recursions: int = 8
    picture: int = 128  # pixels along a side of the picture to enlarge

    @property
    def pixels(self) -> int:
        return self.batch * self.side**2


@dataclass(frozen=True)
class GpuCase(Case):
    gbyte: float = 0.0  # the fewest that must move through memory
    images: int = 0  # a call

    def floor(self, ceilings: dict[str, float]) -> float:
        """Seconds that no implementation with these many operations and bytes can run below."""
        return max(self.gflop / (1e3 * ceilings["matmul_tflops"]), self.gbyte / ceilings["copy_gbs"])


Builder = Callable[[Sizes, Sequence[str]], GpuCase]


def results(
    rounds: int, limit: float | None, case: str | None, quick: bool, sizes: Sizes | None = None
) -> Iterator[dict[str, Any]]:
    """Measure every case, or the one called ``case``; ``quick`` leaves "max-autotune" out."""
    sizes = sizes or Sizes(torch.device("cuda"))
    torch.backends.cudnn.benchmark = True  # the fastest algorithm for plain PyTorch
    ceilings = measured_ceilings(sizes)
    for name in [case] if case else CASES:
        torch.compiler.reset()  # gives back what the last case's graphs hold
        yield _result(CASES[name](sizes, MODES[:1] if quick else MODES), ceilings, rounds, limit, sizes.device)


def _result(
    case: GpuCase, ceilings: dict[str, float], rounds: int, limit: float | None, device: torch.device
) -> dict[str, Any]:
    result = case.measure(rounds, limit, _clock(device), stretch=0.03)
    floor = case.floor(ceilings)
    for name, timing in result["timings"].items():
        timing["share_of_floor"] = floor / timing["median"]
        timing["peak_bytes"] = None if _replays(name) else _peak_bytes(case.implementations[name], device)
        if case.images:
            timing["images_per_second"] = case.images / timing["median"]
    return {**result, "gbyte": case.gbyte, "floor_seconds": floor, "ceilings": ceilings}


def measured_ceilings(sizes: Sizes) -> dict[str, float]:
    """TFLOP/s of a bfloat16 matrix product of random numbers; GB/s of a copy, counting bytes read and written."""
    a, b = (torch.randn(2, sizes.matrix, sizes.matrix, device=sizes.device) / sizes.matrix**0.5).bfloat16()
    product = torch.empty_like(a)
    source = torch.randint(256, (sizes.copied,), dtype=torch.uint8, device=sizes.device)
    target = torch.empty_like(source)
    timings = take_turns(
        {"matmul": lambda: torch.mm(a, b, out=product), "copy": lambda: target.copy_(source)},
        9,
        "ceilings",
        _clock(sizes.device),
        stretch=0.03,
    )
    return {
        "matmul_tflops": 2e-12 * sizes.matrix**3 / timings["matmul"].median,
        "copy_gbs": 2e-9 * sizes.copied / timings["copy"].median,
    }


def _clock(device: torch.device) -> Callable[[], float]:
    if device.type != "cuda":
        return time.perf_counter

    def clock() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return clock


def _replays(name: str) -> bool:
    """Whether an implementation keeps its memory in a CUDA graph, where the allocator does not count it."""
    return name.startswith("cmslap graph") or name == "torch.compile max-autotune"


def _peak_bytes(call: Implementation, device: torch.device) -> int | None:
    """What a call allocates beyond what is there before it."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def gpu_backends() -> list[str]:
    """The backends of ours for GPUs that are built here, best first."""
    return [backend.name for backend in BACKENDS if backend.name not in ("cpu", "reference") and not backend.missing]


Driver = Callable[[Callable[..., Any]], Implementation]  # makes a function of a case a call to time


def _ours(function: Callable[..., Any], drive: Driver, suffix: str = "") -> dict[str, Implementation]:
    return {f"cmslap{suffix} {name}": _on(name, drive(function)) for name in gpu_backends()}


def _contest(
    function: Callable[..., Any], drive: Driver, modes: Sequence[str], more: dict[str, Implementation] | None = None
) -> dict[str, Implementation]:
    """Ours on every backend, ``more``, and plain PyTorch, eager and compiled. What compiles longest comes last."""
    compiled = {f"torch.compile {mode}": _compiled(function, drive, mode) for mode in modes}
    return {**_ours(function, drive), **(more or {}), "eager": _on("reference", drive(function)), **compiled}


def _compiled(function: Callable[..., Any], drive: Driver, mode: str) -> Implementation:
    call = _on("reference", drive(torch.compile(function, mode=mode, dynamic=False)))

    def run() -> None:
        torch.compiler.cudagraph_mark_step_begin()  # the last call's outputs may be overwritten
        call()

    return run


def _on(backend: str, call: Implementation) -> Implementation:
    def run() -> None:
        with ops.use_backend(backend):
            call()

    return run


def _map(batch: int, side: int, device: torch.device) -> Tensor:  # [N, C, side, side]
    x = torch.randn(batch, CHANNELS, side, side, device=device, dtype=torch.bfloat16)
    return x.contiguous(memory_format=torch.channels_last).requires_grad_()


def _kernels(device: torch.device, *depth: int) -> tuple[Tensor, Tensor]:  # [*depth, C, C, 3, 3], [*depth, C]
    weight = torch.randn(*depth, CHANNELS, CHANNELS, 3, 3, device=device) / (3 * CHANNELS**0.5)
    bias = torch.randn(*depth, CHANNELS, device=device) / 10
    return weight.bfloat16().requires_grad_(), bias.bfloat16().requires_grad_()


def _size(x: Tensor) -> str:
    return "×".join(map(str, x.shape))


def _without_graphs(modes: Sequence[str]) -> list[str]:
    """For a single operation on large maps: a CUDA graph would hide no launch, but copy the inputs at every replay."""
    return [f"{mode}-no-cudagraphs" if mode == "max-autotune" else mode for mode in modes]


def _forward_and_backward(inputs: Sequence[Tensor]) -> Driver:
    grad: Tensor | None = None

    def drive(function: Callable[..., Tensor]) -> Implementation:
        def call() -> None:
            nonlocal grad
            output = function(*inputs)
            grad = torch.randn_like(output) if grad is None else grad
            torch.autograd.grad(output, inputs, grad)

        return call

    return drive


def _conv_forward(sizes: Sizes, modes: Sequence[str]) -> GpuCase:
    inputs = [tensor.detach() for tensor in (_map(sizes.batch, sizes.side, sizes.device), *_kernels(sizes.device))]
    implementations = _contest(ops.conv2d_lrelu, lambda function: lambda: function(*inputs), _without_graphs(modes))
    gflop, gbyte = CONV_GFLOP * sizes.pixels, 2 * MAP_GB * sizes.pixels
    return GpuCase("conv2d_lrelu forward", _size(inputs[0]), gflop, implementations, gbyte=gbyte)


def _conv_backward(sizes: Sizes, modes: Sequence[str]) -> GpuCase:
    """The backward pass alone, over and over on one forward pass."""
    inputs = (_map(sizes.batch, sizes.side, sizes.device), *_kernels(sizes.device))
    grad = torch.randn_like(inputs[0])

    def drive(function: Callable[..., Tensor]) -> Implementation:
        output: Tensor | None = None

        def call() -> None:
            nonlocal output
            with functorch_config.patch(donated_buffer=False):  # compiled code must keep what it saved
                output = function(*inputs) if output is None else output
                torch.autograd.grad(output, inputs, grad, retain_graph=True)

        return call

    implementations = _contest(ops.conv2d_lrelu, drive, _without_graphs(modes))
    gflop, gbyte = 2 * CONV_GFLOP * sizes.pixels, 4 * MAP_GB * sizes.pixels  # reads x, output and grad; writes one
    return GpuCase("conv2d_lrelu backward", _size(grad), gflop, implementations, gbyte=gbyte)


def _tied(sizes: Sizes, modes: Sequence[str]) -> GpuCase:
    inputs = (_map(sizes.batch, sizes.side, sizes.device), *_kernels(sizes.device))
    implementations = _contest(ops.tied_conv_transpose2d, _forward_and_backward(inputs), _without_graphs(modes))
    gflop = 3 * CONV_GFLOP * sizes.pixels
    gbyte = (1 + 4 + 4 + 1 + 1) * MAP_GB * sizes.pixels  # a, its upsampling; the gradient of that, a, a's gradient
    name = "tied_conv_transpose2d forward and backward"
    return GpuCase(name, _size(inputs[0]), gflop, implementations, gbyte=gbyte)


def _block(sizes: Sizes, modes: Sequence[str]) -> GpuCase:
    inputs = (_map(sizes.batch, sizes.side, sizes.device), *_kernels(sizes.device, DEPTH))

    def block(u: Tensor, weights: Tensor, biases: Tensor) -> Tensor:
        return ops.recursive_embedding(u, weights, biases, sizes.recursions)

    convolutions = DEPTH * sizes.recursions
    implementations = _contest(block, _forward_and_backward(inputs), modes)
    gflop, gbyte = 3 * convolutions * CONV_GFLOP * sizes.pixels, 6 * convolutions * MAP_GB * sizes.pixels
    name = f"recursive block D{DEPTH}R{sizes.recursions} forward and backward"
    return GpuCase(name, _size(inputs[0]), gflop, implementations, gbyte=gbyte)


def _network_work(recursions: int, pixels: int, levels: int) -> tuple[float, float]:
    """GFLOP and GB of a forward pass over ``pixels`` input pixels: convolutions and upsampling of every level."""
    pixels *= sum(4**level for level in range(levels))
    return (DEPTH * recursions + 1) * CONV_GFLOP * pixels, (2 * DEPTH * recursions + 5) * MAP_GB * pixels


def _training(sizes: Sizes, modes: Sequence[str]) -> GpuCase:
    model = CMSLapSRN(8, DEPTH, sizes.recursions).to(sizes.device, memory_format=torch.channels_last)
    frugal = copy.deepcopy(model)
    frugal.recompute = True
    y = torch.rand(sizes.batch, 1, sizes.low, sizes.low, device=sizes.device).to(memory_format=torch.channels_last)
    sides = (2 * sizes.low, 4 * sizes.low, 8 * sizes.low)
    targets = [torch.rand(sizes.batch, 1, side, side, device=sizes.device) for side in sides]

    def drive(network: nn.Module) -> Implementation:
        parameters = list(network.parameters())
        optimizer = torch.optim.Adam(parameters, lr=1e-4, weight_decay=1e-4)

        def step() -> None:
            optimizer.zero_grad()
            with torch.autocast(sizes.device.type, torch.bfloat16):
                outputs = network(y)
            pairs = zip(outputs, targets, strict=True)
            loss = sum(((x.float() - t).square() + 1e-6).sqrt().mean() for x, t in pairs)
            loss.backward()
            optimizer.step()

        return step

    recompute = {**_ours(frugal, drive, " recompute"), "eager recompute": _on("reference", drive(frugal))}
    implementations = _contest(model, drive, modes, recompute)
    gflop, gbyte = _network_work(sizes.recursions, sizes.batch * sizes.low**2, 3)  # once forward, twice as much back
    name = f"training step, D{DEPTH}R{sizes.recursions}, 8x"
    return GpuCase(name, _size(y), 3 * gflop, implementations, gbyte=3 * gbyte, images=sizes.batch)


def _inference(sizes: Sizes, modes: Sequence[str]) -> GpuCase:
    model = CMSLapSRN(4, DEPTH, sizes.recursions).requires_grad_(False)
    model = model.to(sizes.device, torch.bfloat16, memory_format=torch.channels_last)
    y = torch.rand(1, 1, sizes.picture, sizes.picture, device=sizes.device, dtype=torch.bfloat16)
    y = y.to(memory_format=torch.channels_last)

    def drive(network: nn.Module) -> Implementation:
        return lambda: network(y)

    graphs = {f"cmslap graph {name}": _captured(_on(name, drive(model))) for name in gpu_backends()}
    implementations = _contest(model, drive, modes, graphs)
    gflop, gbyte = _network_work(sizes.recursions, sizes.picture**2, 2)
    name = f"inference, D{DEPTH}R{sizes.recursions}, 4x"
    return GpuCase(name, _size(y), gflop, implementations, gbyte=gbyte, images=1)


def _captured(call: Implementation) -> Implementation:
    """``call`` as a CUDA graph, which takes the launches' time out: what "max-autotune" does for its side."""
    graph: torch.cuda.CUDAGraph | None = None

    def run() -> None:
        nonlocal graph
        if graph is None:
            call()  # tunes
            recorded = torch.cuda.CUDAGraph()
            with torch.cuda.graph(recorded):
                call()
            graph = recorded
        graph.replay()

    return run


CASES: dict[str, Builder] = {
    "conv-forward": _conv_forward,
    "conv-backward": _conv_backward,
    "tied": _tied,
    "inference": _inference,
    "block": _block,
    "training": _training,
}
