"""Enlarging an image in several ways, to be looked at side by side: what a page of ``cmslap compare`` shows."""

import argparse
import base64
import io
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops
from torch import nn
from tqdm import tqdm

from cmslap.checkpoints.checkpoint import load_model
from cmslap.devices import find_device, inference_autocast
from cmslap.errors import UserError, in_one_line
from cmslap.evaluation.evaluate import Quality, quality
from cmslap.evaluation.metrics import WINDOW
from cmslap.files import check_output
from cmslap.imaging import find_images, imresize, interpolable, read_image, store_planes, to_8_bits, to_planes
from cmslap.inference.page import Comparison, Version, write_page
from cmslap.inference.upscaling import upscale
from cmslap.options import DEFAULT_MODEL

LARGEST = 64 * 2**20  # pixels of a result; a page of larger ones would fit no browser
_WEBP_SIDE = 16383  # pixels
_CELL = 32  # pixels a side, in which the versions' differences are summed


class ComparisonError(UserError, ValueError):
    """An image that cannot be shown beside its enlargements."""


def run(args: argparse.Namespace) -> int:
    """Write the page that ``cmslap compare`` is asked for, without the images that cannot be shown."""
    check_output(args.output, args.overwrite)
    if args.original and args.scale != int(args.scale):
        raise ComparisonError(f"--original takes a whole --scale, got {args.scale:g}")
    device = find_device(args.device)
    models = _load(args.model or [DEFAULT_MODEL], device)
    inference_autocast(args.precision, device)  # refuse once, not once an image
    sources = [file for name in args.inputs for file in (find_images(name) if Path(name).is_dir() else [Path(name)])]
    comparisons = []
    for source in tqdm(sources, unit="image", disable=len(sources) == 1 or None):
        try:
            image, original = read_image(source), None
            if args.original:
                image, original = shrink(image, int(args.scale))
            results = enlarge(image, models, args.scale, precision=args.precision, progress=True)
            comparisons.append(assemble(source.name, image.size, results, original))
        except (UserError, OSError) as error:
            tqdm.write(f"cmslap compare: error: {in_one_line(error, source)}", file=sys.stderr)
    if comparisons:
        write_page(comparisons, args.output, device, args.precision)
        print(f"{args.output}: a page of {len(comparisons)} of {len(sources)} images")
    return 0 if len(comparisons) == len(sources) else 1


def _load(names: list[str], device: torch.device) -> dict[str, nn.Module]:
    """The networks by the names a page calls them: files without their folder, unless two would be called the same."""
    short = [Path(name).stem if Path(name).suffix else name for name in names]
    shown = short if len(set(short)) == len(set(names)) else names
    return {label: load_model(name, device=device) for label, name in zip(shown, names, strict=True)}


def shrink(original: Image.Image, scale: int) -> tuple[Image.Image, Image.Image]:
    """The original, cropped at the end to a multiple of ``scale``, and its bicubic reduction, antialiased."""
    original = displayable(original)
    width, height = (side // scale * scale for side in original.size)
    if not width or not height:
        raise ComparisonError(f"{original.width}x{original.height} pixels cannot be shrunk {scale} times")
    original = original.crop((0, 0, width, height))
    return resized(original, (width // scale, height // scale)), original


def enlarge(
    image: Image.Image, models: Mapping[str, nn.Module], scale: float, **options: object
) -> dict[str, tuple[Image.Image, float]]:
    """Each version of ``image``, "bicubic" and one a model, and the seconds it took.

    ``options`` are those of ``cmslap.upscale``. Raises :class:`ComparisonError` and what ``cmslap.upscale`` raises.
    """
    image, size = displayable(image), tuple(math.floor(side * scale + 0.5) for side in image.size)
    _check_size(size)
    results = {"bicubic": _timed(lambda: resized(image, size))}
    for name, model in models.items():
        results[name] = _timed(lambda model=model: upscale(image, model=model, size=size, **options))
    return results


def beside_bicubic(name: str, image: Image.Image, version: str, result: Image.Image, seconds: float) -> Comparison:
    """What a page shows of an image that was enlarged to ``result`` already."""
    _check_size(result.size)
    bicubic = _timed(lambda: resized(displayable(image), result.size))
    return assemble(name, image.size, {"bicubic": bicubic, version: (result, seconds)})


def _check_size(size: tuple[int, int]) -> None:
    if math.prod(size) > LARGEST:
        raise ComparisonError(
            f"a result of {size[0]}x{size[1]} pixels is too large for a page (at most {LARGEST >> 20} million); "
            "crop the image or give a smaller --scale"
        )


def assemble(
    name: str,
    source: tuple[int, int],
    results: Mapping[str, tuple[Image.Image, float]],  # the enlarged image and the seconds it took; bicubic is first
    original: Image.Image | None = None,
) -> Comparison:
    """What a page shows of one image, measured against ``original`` if that is given, as :func:`shrink` gives it."""
    shown = {version: displayable(result) for version, (result, _) in results.items()}
    versions = [
        Version(version, data_uri(result), results[version][1], _quality(result, original, source))
        for version, result in shown.items()
    ]
    if original is not None:
        versions.append(Version("original", data_uri(original)))
    first, *others = shown.values()
    return Comparison(name, source, first.size, versions, _most_different(first, others[-1] if others else first))


def _timed(work: Callable[[], Image.Image]) -> tuple[Image.Image, float]:  # and the seconds it took
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def displayable(image: Image.Image) -> Image.Image:
    """The image as browsers show it: gray or RGB in 8 bits, with an alpha channel if it has one."""
    return to_8_bits(interpolable(image))


def resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """MATLAB's bicubic, antialiased where it shrinks; ``size`` is (width, height)."""
    samples = np.asarray(image)
    result = np.empty((*size[::-1], *samples.shape[2:]), np.uint8)
    store_planes(imresize(to_planes(samples, np.float64), size=size[::-1]), result)
    return Image.fromarray(result)


def _quality(result: Image.Image, original: Image.Image | None, source: tuple[int, int]) -> Quality | None:
    """PSNR and SSIM as in the tables, where there is an original large enough to have them."""
    if original is None:
        return None
    border = original.width // source[0]
    if min(original.size) < WINDOW + 2 * border:
        return None
    mode = "L" if original.mode in ("L", "LA") else "RGB"
    planes = (to_planes(np.asarray(image.convert(mode)), np.float64) for image in (result, original))
    return quality(*planes, border)


def _most_different(first: Image.Image, second: Image.Image) -> tuple[float, float]:
    """The middle of the part in which two images differ most."""
    difference = ImageChops.difference(first.convert("L"), second.convert("L"))
    cells = [max(1, side // _CELL) for side in first.size]
    row, column = divmod(int(np.argmax(difference.resize(cells, Image.Resampling.BOX))), cells[0])
    return (column + 0.5) / cells[0], (row + 0.5) / cells[1]


def data_uri(image: Image.Image) -> str:
    """The image, every value kept, as lossless WebP or, where a side is too long for that, PNG."""
    form = "PNG" if max(image.size) > _WEBP_SIDE else "WEBP"
    buffer = io.BytesIO()
    image.save(buffer, form, **({"lossless": True, "method": 2} if form == "WEBP" else {}))
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
