"""Networks as ONNX and ``torch.export`` files, to run without this package."""

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from cmslap.errors import UserError, require
from cmslap.files import replacing
from cmslap.models import Network
from cmslap.ops import use_backend

TOLERANCE = 1e-5  # of ‖file − network‖ / ‖network‖
_SIZES = ((1, 13, 11), (2, 8, 21))  # batch, height and width the file is tried with; it was traced with another
_AXES = {0: "batch", 2: "height", 3: "width"}


class ExportError(UserError, RuntimeError):
    """A network that cannot be exported here, or a file that does not compute what the network does."""


class _LargestImage(torch.nn.Module):
    def __init__(self, network: Network, scale: int) -> None:
        super().__init__()
        self.network, self.scale = network, scale

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image, self.scale)[-1]


def export(network: Network, path: str | os.PathLike[str], scale: int | None = None) -> float:
    """Write ``network`` at one of its scales as ``.onnx`` or ``.pt2``, and try what was written.

    The file takes ``image`` [batch, image_channels, height, width] in [0, 1], float32, any batch and size, and gives
    ``enlarged`` [batch, image_channels, scale × height, scale × width], not clamped. It holds PyTorch's own operators,
    or ONNX's, and nothing of this package.

    Returns its relative difference from the network, the larger of two sizes'. Raises :class:`ExportError` where that
    exceeds 1e-5, MissingPackageError without the extra, ValueError for a scale that the network does not serve.
    """
    write = writer_of(Path(path))
    network = network.cpu().float().eval()
    scale = network.check_scale(network.scales[-1] if scale is None else scale)
    about = {"architecture": type(network).__name__, "config": json.dumps(network.config()), "scale": str(scale)}
    with replacing(path) as temporary, use_backend("reference"), torch.no_grad(), _quiet():
        example = torch.rand(2, network.image_channels, 12, 16)
        shapes = ({axis: Dim(name) for axis, name in _AXES.items()},)
        program = torch.export.export(_LargestImage(network, scale), (example,), dynamic_shapes=shapes)
        run = write(program, temporary, about)
        difference = max(_difference(network, scale, run, size) for size in _SIZES)
        if not difference <= TOLERANCE:
            raise ExportError(f"{path}: differs from the network by {difference:.1e} (at most {TOLERANCE:g} will do)")
    return difference


def _difference(network: Network, scale: int, run: Callable[[Tensor], Tensor], size: tuple[int, int, int]) -> float:
    batch, height, width = size
    image = torch.rand(batch, network.image_channels, height, width)
    expected = network(image, scale)[-1]
    return ((run(image) - expected).norm() / expected.norm()).item()


def _write_onnx(program: ExportedProgram, path: Path, about: dict[str, str]) -> Callable[[Tensor], Tensor]:
    """Write the program; what runs the file in ONNX Runtime."""
    require("a .onnx file", "export", "onnx", "onnxscript", "onnxruntime")  # PyTorch's exporter imports the first two
    import onnxruntime

    onnx_program = torch.onnx.export(
        program, dynamo=True, verbose=False, input_names=["image"], output_names=["enlarged"]
    )
    onnx_program.model.metadata_props.update(about)
    onnx_program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(np.asarray(session.run(None, {"image": image.numpy()})[0]))


def _write_pt2(program: ExportedProgram, path: Path, about: dict[str, str]) -> Callable[[Tensor], Tensor]:
    """Write the program; the file's, read back."""
    torch.export.save(program, path, extra_files=about)
    return torch.export.load(path).module()


_WRITERS = {".onnx": _write_onnx, ".pt2": _write_pt2}


def writer_of(path: Path) -> Callable[[ExportedProgram, Path, dict[str, str]], Callable[[Tensor], Tensor]]:
    """What writes a file of that suffix. Raises :class:`ExportError`."""
    if path.suffix.lower() not in _WRITERS:
        raise ExportError(f"{path}: the file must end in {' or '.join(_WRITERS)}")
    return _WRITERS[path.suffix.lower()]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks, which are about packages and versions that do not matter here."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
