"""What a user of a CPU would otherwise run: each peer turns a module and an input into a call.

A peer that is not installed, or that can't take the module, raises ImportError or says why in any exception: it is
reported as absent.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cmslap import ops
from cmslap.benchmark.timing import Implementation


class Reference(nn.Module):
    """A module whose operations are plain PyTorch: what the peers get to see."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        with ops.use_backend("reference"):
            return tuple(self.module(x))


def eager(module: nn.Module, x: Tensor) -> Implementation:
    return lambda: Reference(module)(x)


def compiled(module: nn.Module, x: Tensor) -> Implementation:
    function = torch.compile(Reference(module))
    return lambda: function(x)


@contextmanager
def _fixed_sizes() -> Iterator[None]:
    """For tracing: it warns of every size that becomes a constant, and the peers' sizes are meant to be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        yield


def onnxruntime(module: nn.Module, x: Tensor) -> Implementation:
    import onnxruntime

    model = io.BytesIO()
    with _fixed_sizes():
        torch.onnx.export(Reference(module), (x,), model, dynamo=False, input_names=["x"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model.getvalue(), options, providers=["CPUExecutionProvider"])
    inputs = {"x": x.numpy()}
    return lambda: session.run(None, inputs)


def openvino(precision: str) -> Callable[[nn.Module, Tensor], Implementation]:
    """OpenVINO computing in ``precision``, "f32" or "bf16"."""

    def build(module: nn.Module, x: Tensor) -> Implementation:
        import openvino

        with _fixed_sizes():
            converted = openvino.convert_model(Reference(module), example_input=x, input=[x.shape])
        config = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        network = openvino.Core().compile_model(converted, "CPU", config)
        return lambda: network(x.numpy())

    return build


FLOAT32 = {"eager": eager, "torch.compile": compiled, "ONNX Runtime": onnxruntime, "OpenVINO": openvino("f32")}


def build(
    peers: dict[str, Callable[[nn.Module, Tensor], Implementation]], module: nn.Module, x: Tensor
) -> tuple[dict[str, Implementation], dict[str, str]]:
    """The peers that are there, ready to be called; and why the others are not."""
    ready, absent = {}, {}
    for name, peer in peers.items():
        try:
            ready[name] = peer(module, x)
        except ImportError as error:
            absent[name] = str(error)
    return ready, absent
