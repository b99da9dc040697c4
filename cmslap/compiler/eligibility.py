"""Which convolutions kernels are worth calling for, and why others are left to PyTorch."""

from torch import Tensor, float32, fx

from cmslap.compiler.nodes import TRANSPOSED, arguments, aten, has_shape, only_user, value
from cmslap.ops.dispatch import REFERENCE, choose, forced
from cmslap.ops.operation import OPERATIONS

# Measured on AVX-512 cores against channels_last eager, forward and backward. From few channels a convolution is as
# fast as its result is written; but PyTorch's own from one channel takes twice as long backward. Into few, even one,
# the kernels are faster. In smaller images what a call costs whatever its size, and the transformation of its kernel,
# take more time than the fewer multiplications save.
MIN_CHANNELS = 16
MIN_PIXELS = 1024


def objection(node: fx.Node, needs_grad: bool) -> str | None:
    """Why a convolution, transposed or not, is left to PyTorch; None where one of our operations does what it does."""
    given, transposed = arguments(node), node.target is TRANSPOSED
    image, weight = value(given["input"]), value(given["weight"])
    if tuple(weight.shape[2:]) != (3, 3):
        return "only 3×3 kernels are"
    expected = {"stride": 2 if transposed else 1, "padding": 0 if transposed else 1, "dilation": 1, "groups": 1}
    for name, number in expected.items():
        came = given[name]
        if came not in (number, [number, number], "same"):
            return f"{name} {'×'.join(map(str, came)) if isinstance(came, list) else came}; only {number} is"
    if image.dim() != 4:
        return "it takes images without a batch dimension"
    if transposed and crop(node) is None:
        return "its result is not cropped at the end to twice the size"
    if weight.dtype != image.dtype:
        return f"a {image.dtype} image and a {weight.dtype} kernel"
    return objection_to_size(image, weight, needs_grad)


def objection_to_size(x: Tensor, weight: Tensor, needs_grad: bool) -> str | None:  # [N, Cin, H, W], [Cout, Cin, 3, 3]
    """Why ``conv2d_lrelu(x, weight)``, or the transposed convolution, is left to PyTorch; None where a kernel pays.

    Where the user forces a backend, that one is meant to run. Sizes that vary are compared too: the comparison becomes
    a guard of the compiled graph.
    """
    channels = (x.shape[1], weight.shape[1]) if x.device.type == "cpu" else weight.shape[:2]
    from_one = x.device.type == "cpu" and x.shape[1] == weight.shape[1] == 1 and weight.shape[0] >= MIN_CHANNELS
    if min(channels) < MIN_CHANNELS and not from_one:
        return f"fewer than {MIN_CHANNELS} channels: PyTorch is as fast"
    if forced() is not None:
        return None
    if x.dtype != float32:
        return f"{str(x.dtype).removeprefix('torch.')}; only float32 is"  # in half precision no gain was measured
    call = {"x": x, "weight": weight, "bias": None, "skip": None, "negative_slope": 1.0}
    if choose(OPERATIONS["conv2d_lrelu"], call, needs_grad) is REFERENCE:
        return f"no kernel on {x.device.type}"
    if x.shape[0] * x.shape[2] * x.shape[3] < MIN_PIXELS:
        return "too small an image: PyTorch is as fast"
    return None


def crop(node: fx.Node) -> list[fx.Node] | None:
    """The slices, or negative padding, that leave 2H×2W of a transposed convolution's (2H+1)×(2W+1)."""
    n, _, height, width = value(node.args[0]).shape
    wanted = (n, value(node).shape[1], 2 * height, 2 * width)
    nodes = []
    while (user := only_user(node)) is not None and _cuts_the_end(user):
        nodes.append(user)
        if has_shape(user, wanted):
            return nodes
        node = user
    return None


def _cuts_the_end(node: fx.Node) -> bool:
    if node.target is aten.pad.default:
        return all(number == 0 for number in arguments(node)["pad"][::2])
    return node.target is aten.slice.Tensor and arguments(node)["start"] in (None, 0) and arguments(node)["step"] == 1
