"""Compile every Triton kernel ahead of time, without a GPU, and write down what the compiler made of it.

``python -m bench.gpu.aot`` records the launches of the entry points on small CPU tensors (nothing runs), compiles
each with every tuner configuration for each architecture, and writes ``bench/results/aot/sm_<arch>.json``: registers
and spilled bytes a thread, shared memory, and how many tensor-core and asynchronous-copy instructions the machine code
has. A configuration that needs more shared memory than a device has is dropped by the tuner when it runs there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.autotuner import Autotuner

from bench.gpu import machine_code
from cmslap.files import replacing
from cmslap.kernels import conv, dense_block, transposed_conv, weight_gradient
from cmslap.kernels.tuning import TunedKernel

NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


def launches(dtype: torch.dtype, channels: int) -> dict[str, Callable[[], Any]]:
    """Every kind of launch a pyramid level or a dense block makes, on maps of 8×8 pixels."""
    x = torch.empty(1, 8, 8, channels, dtype=dtype)
    up = torch.empty(1, 16, 16, channels, dtype=dtype)
    weight = torch.empty(9, channels, channels, dtype=dtype)
    bias = torch.empty(channels)
    sums = torch.empty(conv.sums_rows(x.shape, dtype), channels)
    gradient = {"saved": x, "sums": sums, "flipped": True, "out": x}
    return {
        "conv": lambda: conv.conv_lrelu(x, weight, bias, None, 0.2),
        "conv_skip": lambda: conv.conv_lrelu(x, weight, bias, x, 0.2),
        "data_gradient": lambda: conv.launch_conv(x, weight, x.shape, 0.2, **gradient),
        "data_gradient_skip": lambda: conv.launch_conv(x, weight, x.shape, 0.2, skip=x, total=x, **gradient),
        "weight_gradient": lambda: weight_gradient.weight_gradient_shares(x[None], x[None], 1),
        "tied": lambda: transposed_conv.transposed_conv(x, weight, bias),
        "tied_data_gradient": lambda: transposed_conv.transposed_conv_data_gradient(up, weight, x, 0.2),
        "tied_weight_gradient": lambda: weight_gradient.weight_gradient_shares(x[None], up[None], 2),
        **dense_launches(dtype, channels // 2),
    }


def dense_launches(dtype: torch.dtype, channels: int) -> dict[str, Callable[[], Any]]:
    """Those that a dense block makes whose growth is as wide as its map."""
    x, dense, records = (torch.empty(1, 8, 8, count * channels, dtype=dtype) for count in (1, 2, 3))
    separable = [
        (torch.empty(count, 9, dtype=dtype), torch.empty(channels, count, dtype=dtype), torch.empty(channels))
        for count in (channels, 2 * channels)
    ]
    block = dense_block.Block(tuple(separable), torch.empty(channels, 3 * channels, dtype=dtype), torch.empty(channels))
    shares = [torch.empty(1, *part.shape) for part in (*separable[0], *separable[1], *block[1:])]
    return {
        "dense_growth": lambda: dense_block.launch_dense(records, block, None, 0.0),
        "dense_block": lambda: dense_block.launch_dense(records, block, records, 0.0),
        "dense_block_gradient": lambda: dense_block.launch_dense_gradient(records, x, block, dense, shares[3:], 0.0),
        "dense_growth_gradient": lambda: dense_block.launch_dense_gradient(records, dense, block, x, shares[:3], 0.0),
    }


def record(launch: Callable[[], Any]) -> tuple[Autotuner, dict[str, Any]]:
    """The kernel a launch asks for and its arguments by name, without running it."""
    calls = []

    def note(kernel: TunedKernel, grid: Any, *args: Any, **constants: Any) -> None:
        calls.append((kernel.tuner, dict(zip(kernel.tuner.arg_names, args, strict=False)) | constants))

    with mock.patch.object(TunedKernel, "launch", note):
        launch()
    (call,) = calls
    return call


def configurations(tuner: Autotuner, arguments: dict[str, Any]) -> list[triton.Config]:
    """The configurations the tuner would try for this launch."""
    constants = {name: value for name, value in arguments.items() if name.isupper()}
    return tuner.early_config_prune(tuner.configs, arguments, **constants)


def compile_kernel(tuner: Autotuner, arguments: dict[str, Any], config: triton.Config, arch: int) -> dict[str, Any]:
    """Compile one configuration; return what to record of it."""
    kernel = tuner.fn
    values = arguments | config.kwargs
    signature, constants, attributes = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        value = values[name]
        if isinstance(value, torch.Tensor):
            signature[name] = "*" + NAMES[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif kernel.params[index].is_constexpr or value is None:
            signature[name], constants[name] = "constexpr", value
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        (made,) = machine_code.kernels(Path(file.name)).values()
    return {"config": config.kwargs | options, "shared_bytes": compiled.metadata.shared, **made}


def compile_all(arch: int, dtypes: list[str], channels: int, first_only: bool) -> list[dict[str, Any]]:
    """One row for each launch, operand type and configuration."""
    rows = []
    for name in dtypes:
        dtype = {"tf32": torch.float32, **{short: dtype for dtype, short in NAMES.items()}}[name]
        with torch.backends.cudnn.flags(allow_tf32=name == "tf32"):
            recorded = {launch: record(call) for launch, call in launches(dtype, channels).items()}
        for launch, (tuner, arguments) in recorded.items():
            configs = configurations(tuner, arguments)
            for config in configs[:1] if first_only else configs:
                row = {"launch": launch, "operands": name, **compile_kernel(tuner, arguments, config, arch)}
                print(json.dumps(row), flush=True)
                rows.append(row)
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90], help="compute capabilities (default: 80 90)")
    parser.add_argument("--operands", nargs="+", default=["bf16", "fp16", "tf32", "fp32"], metavar="TYPE")
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--first-only", action="store_true", help="only each kernel's first configuration")
    parser.add_argument("-o", "--output", type=Path, default=Path("bench/results/aot"))
    options = parser.parse_args(arguments)
    for arch in options.arch:
        rows = compile_all(arch, options.operands, options.channels, options.first_only)
        header = {
            "note": "compiled ahead of time; these kernels have not run on a GPU",
            "triton": triton.__version__,
            "channels": options.channels,
        }
        with replacing(options.output / f"sm_{arch}.json") as path:
            path.write_text(machine_code.one_row_a_line(header, rows))


if __name__ == "__main__":
    main()
