"""What commands have in common on the command line. Imports nothing heavy: ``--help`` must be quick."""

import argparse
import math
import re
from pathlib import Path

DEFAULT_SCALE = 4
DEFAULT_MODEL = "cms-lapsrn-d5r2"
# As --precision and training's `precision` name them -> PyTorch's name.
PRECISIONS = {"float32": "float32", "bfloat16": "bfloat16", "bf16": "bfloat16", "float16": "float16", "fp16": "float16"}


def add_model_option(parser: argparse.ArgumentParser, note: str = "", **options: object) -> None:
    """Which network; the help ends in ``note``."""
    shipped = sorted(path.stem for path in (Path(__file__).parent / "weights").glob("*.safetensors"))
    parser.add_argument(
        "-m", "-n", "--model", metavar="NAME|PATH",
        help=f"{', '.join(shipped)}, or a checkpoint file (default {DEFAULT_MODEL}){note}", **options,
    )  # fmt: skip


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Where to compute, and how exactly."""
    parser.add_argument(
        "-g", "--device", type=device, default="auto", metavar="DEVICE",
        help="cpu (or -1), cuda, or the number of a GPU (default: the GPU if any)",
    )  # fmt: skip
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="float32",
        help="of the features; shorter is faster, and refused where the device has no such arithmetic: on a CPU, bf16 "
        "takes AVX512-BF16 (default %(default)s)",
    )  # fmt: skip


def add_codec_options(parser: argparse.ArgumentParser) -> None:
    """How a video is compressed."""
    parser.add_argument("--codec", choices=("h264", "hevc", "av1"), default="h264", help="(default %(default)s)")
    parser.add_argument(
        "--crf", type=crf, metavar="N", help="constant quality, less is better (default 18, 20, 25 by the codec)"
    )
    parser.add_argument(
        "--preset", help="the encoder's own word for how long it takes, such as fast or slow; AV1's: 0-13"
    )


def crf(text: str) -> int:
    return _whole(text, 63, "a whole number from 0 to 63")


def device(text: str) -> str:
    """A device's name as PyTorch has it; a number counts GPUs, and -1 is the CPU."""
    if re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        return text
    if text.isdecimal():
        return f"cuda:{text}"
    if text == "-1":
        return "cpu"
    raise argparse.ArgumentTypeError(f"must be auto, cpu, cuda or the number of a GPU, got {text!r}")


def scale(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 1 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 1, got {text!r}")
    return number


def size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d{0,8})[xX×]([1-9]\d{0,8})", text)
    if not match:
        raise argparse.ArgumentTypeError(f"must be WIDTHxHEIGHT in pixels, such as 1920x1080, got {text!r}")
    return int(match[1]), int(match[2])


def tile(text: str) -> int:
    return _whole(text, 10**9, "a number of pixels, 0 or more")


def _whole(text: str, most: int, accepted: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 11 and int(text) <= most):
        raise argparse.ArgumentTypeError(f"must be {accepted}, got {text!r}")
    return int(text)
