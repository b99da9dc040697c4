"""What is measured: an operation or a network, forward or with its gradients, in any size, type and layout.

The suites of ``python -m bench`` and the microbenchmarks of ``pytest bench`` take their work from here, so that they
measure the same. Every call takes the next of several inputs, together larger than a processor's caches.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.speed import networks
from bench.speed.timing import Implementation
from cmslap import ops
from cmslap.models import NETWORKS, RLRDSR, AsymVDSR, CMSLapSRN
from cmslap.training import config
from cmslap.training.data import ScaleBatch
from cmslap.training.distributed import Workers
from cmslap.training.trainer import Trainer

CACHES = 64 * 2**20  # bytes that no last-level cache keeps, nearly
MOST_INPUTS = 16
CPU = torch.device("cpu")

Inputs = tuple[Tensor, ...]
Driver = Callable[[Callable[..., Any]], Implementation]  # makes of a function the call to time


@dataclass(frozen=True)
class Setting:
    """Where and how large; ``side`` is that of the map or image a function reads, in pixels, an even number."""

    device: torch.device = CPU
    dtype: torch.dtype = torch.float32
    layout: torch.memory_format = torch.channels_last
    batch: int = 1
    side: int = 128
    channels: int = 64
    depth: int = 5
    recursions: int = 8

    @property
    def pixels(self) -> int:
        return self.batch * self.side**2

    @property
    def convolutions(self) -> int:
        """A pyramid level's."""
        return self.depth * self.recursions

    @property
    def conv_gflop(self) -> float:
        """Of one convolution between all channels, over all pixels."""
        return 2e-9 * 9 * self.channels**2 * self.pixels

    @property
    def map_gbyte(self) -> float:
        """Of one activation."""
        return 1e-9 * self.channels * self.dtype.itemsize * self.pixels


@dataclass(frozen=True)
class Work:
    """One thing to compute.

    ``function`` is what a compiler or exporter may take; ``drive`` makes a call of it or of what they made of it.
    ``gflop`` counts the multiply-adds of plain convolutions, twice; ``gbyte`` each activation of a separate
    convolution read once and written once.
    """

    name: str
    size: str
    function: Callable[..., Any]
    inputs: Sequence[Inputs]
    drive: Driver
    gflop: float
    gbyte: float
    images: int = 0  # a call, where one counts them
    plain: Callable[..., Any] | None = None  # what eager and compiled PyTorch run, where that is not ``function``

    @property
    def reference(self) -> Callable[..., Any]:
        return self.plain or self.function

    @property
    def facts(self) -> dict[str, Any]:
        """What a record says of it."""
        return {key: getattr(self, key) for key in ("name", "size", "gflop", "gbyte", "images")}


Build = Callable[[Setting], Work]


def size_text(x: Tensor) -> str:
    return "×".join(map(str, x.shape))


def _rotation(make: Callable[[], Inputs]) -> list[Inputs]:
    """As many inputs as the caches can't hold, at least two."""
    first = make()
    count = min(max(math.ceil(CACHES / first[0].nbytes), 2), MOST_INPUTS)
    return [first, *(make() for _ in range(count - 1))]


def forward_of(inputs: Sequence[Inputs]) -> Driver:
    def drive(function: Callable[..., Any]) -> Implementation:
        turns = itertools.cycle(inputs)
        return lambda: function(*next(turns))

    return drive


def forward_and_backward_of(function: Callable[..., Tensor], inputs: Sequence[Inputs]) -> Driver:
    with torch.no_grad():
        output = function(*inputs[0])
    grads = [torch.randn_like(output) for _ in inputs]  # beforehand: random numbers take longer than many a call

    def drive(function: Callable[..., Tensor]) -> Implementation:
        turns = itertools.cycle(zip(inputs, grads, strict=True))

        def call() -> None:
            arguments, grad = next(turns)
            torch.autograd.grad(function(*arguments), arguments, grad)

        return call

    return drive


# The operations -------------------------------------------------------------------------------------------------------


def feature_map(setting: Setting, channels: int | None = None, shrink: int = 1) -> Tensor:  # [N, C, side, side]
    side = setting.side // shrink
    shape = setting.batch, channels or setting.channels, side, side
    x = torch.randn(shape, device=setting.device, dtype=setting.dtype)
    return x.contiguous(memory_format=setting.layout).requires_grad_()


def kernels(setting: Setting, *depth: int) -> Inputs:  # [*depth, C, C, 3, 3], [*depth, C]
    channels, to = setting.channels, {"device": setting.device, "dtype": setting.dtype}
    weight = torch.randn(*depth, channels, channels, 3, 3, **to) / (3 * channels**0.5)
    return weight.requires_grad_(), (torch.randn(*depth, channels, **to) / 10).requires_grad_()


@dataclass(frozen=True)
class _Operation:
    """One of ``cmslap.ops`` with its arguments besides the first, and its work in convolutions and maps."""

    function: Callable[[Setting], Callable[..., Tensor]]
    parameters: Callable[[Setting], Inputs]
    convolutions: Callable[[Setting], float]
    maps_forward: Callable[[Setting], float]  # of all channels, read or written
    maps_backward: Callable[[Setting], float]
    part: int = 1  # the map has a ``part``-th of the channels


def _head_parameters(setting: Setting) -> Inputs:
    to = {"device": setting.device, "dtype": setting.dtype}
    image = feature_map(setting, channels=1, shrink=2)
    weights = (torch.randn(1, setting.channels, 3, 3, **to) / 24, torch.zeros(1, **to), torch.rand(1, 1, 4, 4, **to))
    return image, *(weight.requires_grad_() for weight in weights)


def _level_parameters(setting: Setting) -> Inputs:
    return *kernels(setting, setting.depth), kernels(setting)[1]


def _dense_parameters(setting: Setting) -> Inputs:
    """Growth is as wide as the map: both are half the channels."""
    block = RLRDSR(channels=setting.channels // 2, growth=setting.channels // 2).block
    return tuple(tensor.detach().to(setting.device, setting.dtype).requires_grad_() for tensor in block.arguments())


def _dense(setting: Setting) -> Callable[..., Tensor]:
    return lambda u, *block: ops.dense_recursion(u, *block, setting.recursions)


def _dense_convolutions(setting: Setting) -> float:
    """With C = G a recursion multiplies 27 C times in its depthwise convolutions, 6 C² times in the others."""
    half = setting.channels // 2
    return setting.recursions * (27 * half + 6 * half**2) / (9 * setting.channels**2)


def _embedding(setting: Setting) -> Callable[..., Tensor]:
    return lambda u, weights, biases: ops.recursive_embedding(u, weights, biases, setting.recursions)


def _level(setting: Setting) -> Callable[..., Tensor]:
    middle = (setting.depth + 1) // 2

    def level(u: Tensor, weights: Tensor, biases: Tensor, upsample_bias: Tensor) -> Tensor:
        return ops.lapsrn_level(u, weights, biases, middle, upsample_bias, setting.recursions)

    return level


# A convolution reads its input and writes its output; backward reads input, output and gradient and writes one. The
# upsampling's maps on the large side count four.
_OPERATIONS = {
    "conv2d_lrelu": _Operation(lambda s: ops.conv2d_lrelu, kernels, lambda s: 1, lambda s: 2, lambda s: 4),
    "recursive_embedding": _Operation(
        _embedding,
        lambda s: kernels(s, s.depth),
        lambda s: s.convolutions,
        lambda s: 2 * s.convolutions,
        lambda s: 4 * s.convolutions,
    ),
    "tied_conv_transpose2d": _Operation(
        lambda s: ops.tied_conv_transpose2d, kernels, lambda s: 1, lambda s: 1 + 4, lambda s: 4 + 1 + 1
    ),
    "lapsrn_level": _Operation(
        _level,
        _level_parameters,
        lambda s: s.convolutions + 1,
        lambda s: 2 * s.convolutions + 5,
        lambda s: 4 * s.convolutions + 6,
    ),
    "residual_head": _Operation(
        lambda s: ops.residual_head, _head_parameters, lambda s: 1 / s.channels, lambda s: 1, lambda s: 2
    ),
    "dense_recursion": _Operation(
        _dense,
        _dense_parameters,
        _dense_convolutions,
        lambda s: 7.5 * s.recursions,
        lambda s: 15 * s.recursions,
        part=2,
    ),
}
OPERATIONS = tuple(_OPERATIONS)


def operation(name: str, backward: bool, setting: Setting) -> Work:
    """One of ``OPERATIONS`` on a map of ``setting``'s size, alone or with the gradients of all its tensors."""
    kind = _OPERATIONS[name]
    parameters = kind.parameters(setting)
    inputs = _rotation(lambda: (feature_map(setting, setting.channels // kind.part), *parameters))
    if not backward:
        inputs = [tuple(tensor.detach() for tensor in arguments) for arguments in inputs]
    recursive = f" D{setting.depth}R{setting.recursions}" if name in ("recursive_embedding", "lapsrn_level") else ""
    recursive = f" R{setting.recursions}" if name == "dense_recursion" else recursive
    maps = kind.maps_forward(setting) + backward * kind.maps_backward(setting)
    function = kind.function(setting)
    return Work(
        f"{name}{recursive} {'forward + backward' if backward else 'forward'}",
        size_text(inputs[0][0]),
        function,
        inputs,
        forward_and_backward_of(function, inputs) if backward else forward_of(inputs),
        (3 if backward else 1) * kind.convolutions(setting) * setting.conv_gflop,
        maps * setting.map_gbyte,
    )


def conv_gradient(which: str, setting: Setting) -> Work:
    """One of a convolution's gradients alone, over and over on one forward pass of each input.

    "data" is the input's, "weight" that of the parameters.
    """
    forward_only = operation("conv2d_lrelu", False, setting)
    wanted = slice(0, 1) if which == "data" else slice(1, None)
    for arguments in forward_only.inputs:
        for tensor in arguments[wanted]:
            tensor.requires_grad_()
    drive = _gradient_of(forward_only.inputs, wanted)
    maps = 4 if which == "data" else 3  # reads input or output's sign, output and gradient; data writes one
    return Work(
        f"conv2d_lrelu {which} gradient",
        forward_only.size,
        forward_only.function,
        forward_only.inputs,
        drive,
        forward_only.gflop,
        maps * setting.map_gbyte,
    )


def _gradient_of(inputs: Sequence[Inputs], wanted: slice) -> Callable[[Callable[..., Tensor]], Implementation]:
    def drive(function: Callable[..., Tensor]) -> Implementation:
        passes: list[tuple[Inputs, Tensor, Tensor]] = []
        turns = itertools.cycle(range(len(inputs)))

        def call() -> None:
            if not passes:
                outputs = [function(*arguments) for arguments in inputs]
                passes.extend((i, o, torch.randn_like(o)) for i, o in zip(inputs, outputs, strict=True))
            arguments, output, grad = passes[next(turns)]
            torch.autograd.grad(output, arguments[wanted], grad, retain_graph=True)

        return call

    return drive


# The networks ---------------------------------------------------------------------------------------------------------


def network_work(setting: Setting, scale: int) -> tuple[float, float]:
    """GFLOP and GB of CMS-LapSRN's forward pass: convolutions and upsampling of every level."""
    pixels = sum(4**level for level in range(scale.bit_length() - 1))  # in those of the input
    maps = 2 * setting.convolutions + 5
    return pixels * (setting.convolutions + 1) * setting.conv_gflop, pixels * maps * setting.map_gbyte


def _network(setting: Setting, scale: int) -> CMSLapSRN:
    model = CMSLapSRN(scale, setting.depth, setting.recursions, setting.channels, (setting.depth + 1) // 2)
    return model.to(setting.device, memory_format=setting.layout)


def _images(setting: Setting, dtype: torch.dtype, colours: int = 1) -> list[Inputs]:
    """Images whose strides say which layout, so that plain PyTorch's convolutions run in it."""

    def make() -> Inputs:
        image = torch.rand(setting.batch, colours, setting.side, setting.side, device=setting.device, dtype=dtype)
        return (image.to(memory_format=setting.layout),)

    return _rotation(make)


def forward(scale: int, setting: Setting) -> Work:
    """CMS-LapSRN's inference."""
    model = _network(setting, scale).requires_grad_(False).to(setting.dtype)
    inputs = _images(setting, setting.dtype)
    gflop, gbyte = network_work(setting, scale)
    name = f"{scale}x forward, CMS-LapSRN D{setting.depth}R{setting.recursions}"
    return Work(name, size_text(inputs[0][0]), model, inputs, forward_of(inputs), gflop, gbyte, images=setting.batch)


def video_frame(setting: Setting) -> Work:
    """RLRD-SR's inference: what a receiver of content-adaptive video computes a frame."""
    model = RLRDSR().requires_grad_(False).to(setting.device, setting.dtype, memory_format=setting.layout)
    inputs = _images(setting, setting.dtype)
    gflop, gbyte = _video_work(setting)
    return Work(
        "2x forward, RLRD-SR", size_text(inputs[0][0]), model, inputs, forward_of(inputs), gflop, gbyte, setting.batch
    )


def video_step(setting: Setting) -> Work:
    """RLRD-SR's training step, L1 and Adam: what a sender of content-adaptive video computes for every scene."""
    model = RLRDSR().to(setting.device, memory_format=setting.layout)
    inputs = _images(setting, torch.float32)
    target = torch.rand(setting.batch, 1, 2 * setting.side, 2 * setting.side, device=setting.device)

    def loss(image: Tensor) -> Tensor:
        return (model(image)[0] - target).abs().mean()

    def drive(function: Callable[..., Tensor]) -> Implementation:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)
        turns = itertools.cycle(inputs)

        def call() -> None:
            optimizer.zero_grad()
            function(*next(turns)).backward()
            optimizer.step()

        return call

    gflop, gbyte = _video_work(setting)
    return Work("training step, RLRD-SR", size_text(inputs[0][0]), loss, inputs, drive, 3 * gflop, 3 * gbyte)


def _video_work(setting: Setting) -> tuple[float, float]:
    """GFLOP and GB of RLRD-SR's forward pass: all its weights but the biases, the block's N times."""
    model = RLRDSR()
    block = sum(weight.numel() for weight in model.block.parameters() if weight.ndim == 4)
    ends = model.head.weight.numel() + model.tail.weight.numel()
    channels, growth = model.channels, model.growth
    numbers = model.recursions * (8 * channels + 7 * growth) + 2 * channels  # read and written by D₁, P₁, D₂, P₂, P₃
    gbyte = 1e-9 * setting.dtype.itemsize * numbers * setting.pixels
    return 2e-9 * (model.recursions * block + ends) * setting.pixels, gbyte


# Networks that are not ours, in the sizes their authors give or somewhat smaller.
_THIRD_PARTY: dict[str, Callable[[int], nn.Module]] = {
    "VDSR": lambda channels: networks.VDSR(depth=18, channels=channels),
    "Asym_VDSR": lambda channels: networks.AsymVDSR(depth=18, channels=channels),
    "EDSR": lambda channels: networks.EDSR(channels, blocks=16),
    "SRResNet": lambda channels: networks.SRResNet(channels, blocks=16),
    "MSRN": lambda channels: networks.MSRN(channels, blocks=2),
    "DRRN": lambda channels: networks.DRRN(channels, units=9),
    "MS-LapSRN": lambda channels: networks.PlainMSLapSRN(channels, depth=5, recursions=8, levels=1),
}
THIRD_PARTY = tuple(_THIRD_PARTY)


def third_party(name: str, backward: bool, setting: Setting) -> Work:
    """One of ``THIRD_PARTY``, networks in plain PyTorch: its forward pass, alone or with all gradients."""
    model = _THIRD_PARTY[name](setting.channels).requires_grad_(backward)
    model = model.to(setting.device, setting.dtype, memory_format=setting.layout)
    inputs = _images(setting, setting.dtype, colours=next(model.parameters()).shape[1])

    def drive(network: nn.Module) -> Implementation:
        if not backward:
            return forward_of(inputs)(network)
        parameters = list(network.parameters())
        turns = itertools.cycle(inputs)

        def call() -> None:
            output = network(*next(turns))
            torch.autograd.grad((output[-1] if isinstance(output, list) else output).sum(), parameters)

        return call

    gflop, gbyte = _counted(model, inputs[0])
    return Work(
        f"{name} {'forward + backward' if backward else 'forward'}, accelerated",
        size_text(inputs[0][0]),
        model,
        inputs,
        drive,
        (3 if backward else 1) * gflop,
        (3 if backward else 1) * gbyte,
        images=setting.batch,
    )


@torch.no_grad()
def _counted(model: nn.Module, inputs: Inputs) -> tuple[float, float]:
    """GFLOP of a network's forward pass, and GB that its convolutions read and write."""
    from torch.utils.flop_counter import FlopCounterMode  # not above: every command would wait for it

    moved = 0

    def count(module: nn.Module, read: Inputs, written: Tensor) -> None:
        nonlocal moved
        moved += read[0].nbytes + written.nbytes

    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)]
    hooks = [module.register_forward_hook(count) for module in convolutions]
    with FlopCounterMode(display=False) as counter:
        model(*inputs)
    for hook in hooks:
        hook.remove()
    return 1e-9 * counter.get_total_flops(), 1e-9 * moved


class _Pairs(AsymVDSR):
    """Asym_VDSR as it is written down, two convolutions a pair: PyTorch takes less time for these than for one."""

    def restore(self, image: Tensor) -> Tensor:
        features = F.relu(self.conv_in(image))
        kernels = (weight.chunk(self.depth - 2) for weight in (self.vertical_weight, self.horizontal_weight))
        for vertical, horizontal, bias in zip(*kernels, self.middle_bias, strict=True):
            features = F.conv2d(features, vertical, padding=(1, 0))
            features = F.relu(F.conv2d(features, horizontal, bias, padding=(0, 1)))
        return image + self.conv_out(features)


def sister(name: str, scale: int, setting: Setting) -> Work:
    """The inference of a network of the package that is no pyramid, ``setting.side`` being the enlarged image's.

    Its work is not counted, so it has no roofline.
    """
    model = NETWORKS[name](channels=setting.channels).requires_grad_(False).to(setting.dtype)
    setting = replace(setting, side=setting.side // scale)
    model.to(setting.device, memory_format=setting.layout)
    plain = None
    if isinstance(model, AsymVDSR):
        plain = _Pairs(channels=setting.channels).requires_grad_(False).to(setting.device, setting.dtype)
        plain.load_state_dict(model.state_dict())
        plain.to(memory_format=setting.layout)
    inputs = [(image, scale) for (image,) in _images(setting, setting.dtype, colours=model.image_channels)]
    size = size_text(inputs[0][0])
    return Work(f"{scale}x forward, {name}", size, model, inputs, forward_of(inputs), 0.0, 0.0, setting.batch, plain)


def training_step(scale: int, recompute: bool, setting: Setting) -> Work:
    """CMS-LapSRN's step with every level's Charbonnier loss and Adam; a dtype below float32 means autocast."""
    model = _network(setting, scale)
    model.recompute = recompute
    inputs = _images(setting, torch.float32)
    sides = [setting.side * 2**level for level in range(1, scale.bit_length())]
    targets = [torch.rand(setting.batch, 1, side, side, device=setting.device) for side in sides]

    def drive(network: nn.Module) -> Implementation:
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, weight_decay=1e-4)
        turns = itertools.cycle(inputs)

        def step() -> None:
            (y,) = next(turns)
            optimizer.zero_grad()
            with torch.autocast(setting.device.type, setting.dtype, enabled=setting.dtype != torch.float32):
                outputs = network(y)
            pairs = zip(outputs, targets, strict=True)
            loss = sum(((x.float() - t).square() + 1e-6).sqrt().mean() for x, t in pairs)
            loss.backward()
            optimizer.step()

        return step

    gflop, gbyte = network_work(setting, scale)  # once forward, twice as much back
    name = f"{scale}x training step, CMS-LapSRN D{setting.depth}R{setting.recursions}"
    return Work(name, size_text(inputs[0][0]), model, inputs, drive, 3 * gflop, 3 * gbyte, images=setting.batch)


def recipe_step(recipe: str, setting: Setting) -> Work:
    """A step of a shipped configuration on noise: all its scales, its loss, optimizer and averaged weights."""
    trainer = Trainer(config.load(recipe, ["data.train=['unused']"]), Workers(0, 1, setting.device))
    settings = trainer.config

    def noise(scale: int, count: int) -> ScaleBatch:
        sides = [settings.patch // scale * factor for factor in (1, *trainer.model.output_scales(scale))]
        low, *targets = (torch.rand(count, 1, side, side, device=setting.device) for side in sides)
        return ScaleBatch(scale, count, low.to(memory_format=setting.layout), targets)

    batches = [noise(*item) for item in settings.counts.items()]
    steps = itertools.count()

    def drive(network: nn.Module) -> Implementation:
        trainer.forward = network
        return lambda: trainer.learn(min(next(steps), settings.steps - 1), batches)

    name = f"training step of {recipe}"
    return Work(name, f"{settings.batch} of {settings.patch}²", trainer.model, [], drive, 0.0, 0.0, settings.batch)
