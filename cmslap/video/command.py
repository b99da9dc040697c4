"""``cmslap video encode | decode | evaluate``: a small video, and the weights that make it large."""

import argparse
import re
from pathlib import Path

from cmslap import options
from cmslap.errors import require

_DESCRIPTION = """\
Send a video at half its size, and beside it the weights of a tiny network trained on this very video.

encode writes small.mp4, which plays everywhere as it is, and small.cmsw: the network for the video, and for each scene
what changes. decode makes the large video of both. evaluate measures what the weights gain and cost.
"""
_ENCODE_EXAMPLES = """\
examples:
  cmslap video encode movie.mp4 -o small.mp4 --bitrate 600k
  cmslap video encode movie.mp4 -o small.mp4 --bitrate 600k --scenes auto --budget 30

What was killed goes on when the same command is given again.
"""
_DECODE_EXAMPLES = """\
examples:
  cmslap video decode small.mp4 -o large.mp4
  cmslap video decode small.mp4 -o large.mkv --codec hevc --crf 18
"""
_EVALUATE_EXAMPLES = """\
examples:
  cmslap video evaluate movie.mp4 small.mp4
  cmslap video evaluate movie.mp4 small-300k.mp4 small-600k.mp4 small-1200k.mp4 small-2400k.mp4 --json table.json --plot table.png

With four videos or more, of several bit rates, the mean difference in rate at equal PSNR (BD-rate) is told too.
"""  # noqa: E501


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("video", help="small videos with the weights that make them large",
        description=_DESCRIPTION)  # fmt: skip
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add_encode(actions)
    _add_decode(actions)
    _add_evaluate(actions)


def _action(actions: argparse._SubParsersAction, name: str, summary: str, examples: str) -> argparse.ArgumentParser:
    return actions.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", epilog=examples
    )  # fmt: skip


def _add_encode(actions: argparse._SubParsersAction) -> None:
    parser = _action(actions, "encode", "make a small video and its weights", _ENCODE_EXAMPLES)
    parser.add_argument("input", type=Path, metavar="IN", help="the video")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="SMALL.mp4", help="the weights: SMALL.cmsw")
    parser.add_argument(
        "-b", "--bitrate", type=bitrate, required=True, metavar="N",
        help="bits a second of the small video, such as 600k or 1.5M",
    )  # fmt: skip
    parser.add_argument("--budget", type=_minutes, default=10.0, metavar="MINUTES", help="to train (default 10)")
    parser.add_argument(
        "--lambda", dest="price", type=_price, default=0.003, metavar="λ",
        help="price on what a scene's weights differ from the video's (default 0.003)",
    )  # fmt: skip
    parser.add_argument(
        "--scenes", type=_scenes, default=32, metavar="N|auto", help="frames a scene, or where it cuts (default 32)"
    )
    parser.add_argument(
        "--halving", choices=("bicubic", "area"), default="bicubic", help="of the frames (default %(default)s)"
    )
    parser.add_argument(
        "--centroids", type=_count, nargs=2, default=(1000, 300), metavar="N",
        help="distinct weights of the video's network and of a scene's difference (default 1000 300)",
    )  # fmt: skip
    parser.add_argument("--recursions", type=_count, default=4, metavar="N", help="of the network's block (default 4)")
    parser.add_argument("--preset", default="medium", help="of libx265 (default %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    parser.set_defaults(run=encode)


def _add_decode(actions: argparse._SubParsersAction) -> None:
    parser = _action(actions, "decode", "make the large video", _DECODE_EXAMPLES)
    parser.add_argument("input", type=Path, metavar="SMALL.mp4", help="the video; its weights lie beside it")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="the large video")
    options.add_codec_options(parser)
    options.add_device_options(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    parser.set_defaults(run=decode)


def _add_evaluate(actions: argparse._SubParsersAction) -> None:
    parser = _action(actions, "evaluate", "measure what the weights gain and cost", _EVALUATE_EXAMPLES)
    parser.add_argument("original", type=Path, metavar="ORIGINAL", help="the video that was encoded")
    parser.add_argument("small", type=Path, nargs="+", metavar="SMALL.mp4", help="what encode made of it")
    parser.add_argument("--no-rival", action="store_true", help="leave out HEVC at full size and the same bits")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all figures and where they come from")
    parser.add_argument("--plot", type=Path, metavar="OUT.png", help="draw PSNR against bits a pixel")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    parser.set_defaults(run=evaluate)


def encode(args: argparse.Namespace) -> int:
    from cmslap.files import check_output

    require("a video", "video", "av", "constriction", "scipy")
    from cmslap.video.encode import Settings
    from cmslap.video.encode import encode as run
    from cmslap.video.writing import check

    check(args.output, "hevc", args.preset)
    check_output(args.output, args.overwrite)
    check_output(args.output.with_suffix(".cmsw"), args.overwrite)
    settings = Settings(
        args.bitrate, args.budget, args.price, args.scenes, args.halving, args.preset, args.recursions,
        tuple(args.centroids),
    )  # fmt: skip
    weights = run(args.input, args.output, settings)
    common, differences = weights.bits
    print(
        f"{args.output}: {args.output.stat().st_size / 1000:,.0f} kB, and {args.output.with_suffix('.cmsw')}: "
        f"{common / 8000:.1f} kB for the video, {sum(differences) / 8000 / len(differences):.1f} kB for each of "
        f"{len(differences)} scenes"
    )
    return 0


def decode(args: argparse.Namespace) -> int:
    from cmslap.files import check_output

    require("a video", "video", "av", "constriction", "scipy")
    from cmslap.devices import find_device, inference_autocast
    from cmslap.video.enlarge import ByScene, enlarge_video
    from cmslap.video.evaluate import load_beside
    from cmslap.video.writing import Encoding, check

    check(args.output, args.codec, args.preset)
    check_output(args.output, args.overwrite)
    device = find_device(args.device)
    autocast = inference_autocast(args.precision, device)
    weights = load_beside(args.input)
    networks = [network.to(device) for network in weights.scene_networks()]
    what = {"weights": weights.video, "precision": args.precision}
    enlarge = ByScene(weights, networks, autocast)
    encoding = Encoding(args.codec, args.crf, preset=args.preset)
    enlarge_video(args.input, args.output, enlarge, encoding, what, workers=None if device.type == "cpu" else 1)
    return 0


def evaluate(args: argparse.Namespace) -> int:
    from cmslap.files import check_output

    require("a video", "video", "av", "constriction", "scipy", "bjontegaard")
    for path in filter(None, (args.json, args.plot)):
        check_output(path, args.overwrite)
    from cmslap.video.report import report

    report(args.original, args.small, not args.no_rival, args.json, args.plot)
    return 0


def bitrate(text: str) -> int:
    """Bits a second: 600k, 1.5M or a plain number."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)([kM]?)", text)
    bits = round(float(match[1]) * {"": 1, "k": 1000, "M": 10**6}[match[2]]) if match else 0
    if not 1000 <= bits <= 10**9:
        raise argparse.ArgumentTypeError(f"must be bits a second from 1k to 1000M, such as 600k or 1.5M, got {text!r}")
    return bits


def _minutes(text: str) -> float:
    return _number(text, float, 0.001, 10**5, "minutes")


def _price(text: str) -> float:
    return _number(text, float, 0, 1000, "a number from 0")


def _count(text: str) -> int:
    return _number(text, int, 1, 20000, "a number from 1 to 20000")


def _scenes(text: str) -> int | None:
    return None if text == "auto" else _number(text, int, 1, 10**6, "a number of frames, or auto")


def _number(text: str, kind: type, least: float, most: float, what: str) -> float:
    try:
        number = kind(text)
    except ValueError:
        number = None
    if number is None or not least <= number <= most:
        raise argparse.ArgumentTypeError(f"must be {what}, got {text!r}")
    return number
