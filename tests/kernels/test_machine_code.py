"""What nvcc made of the kernels of csrc/cuda: the instructions they were written for, and no spilled registers."""

import functools
import json
import os
import re

import pytest

from bench.gpu import machine_code
from cmslap.ops.extension import CUDA_LIBRARY, CUDA_MISSING

pytestmark = [
    pytest.mark.skipif(CUDA_MISSING is not None, reason=str(CUDA_MISSING)),
    pytest.mark.skipif(machine_code.cuobjdump() is None, reason="there is no cuobjdump, CUDA's disassembler"),
    pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="runs in the main process"),
]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """Architecture -> kernel -> what became of it, for sm_80 and sm_90a."""
    path = tmp_path_factory.mktemp("machine-code") / "cuda.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine_code, "dump", functools.cache(machine_code.dump))  # takes seconds
        assert machine_code.main(["--output", str(path)]) == 0
        record = json.loads(path.read_text())
        assert record["compiler"].startswith("Cuda compilation tools")
        found = {}
        for row in record["kernels"]:
            found.setdefault(row["arch"], {})[row["kernel"]] = row
        yield found


def matrix_kernels(kernels, arch, generation):
    """The convolutions and weight gradients of ``arch`` made for ``generation``'s tensor cores."""
    if arch not in kernels:
        pytest.skip(f"not built for {arch}")
    found = {name: made for name, made in kernels[arch].items() if name.startswith(f"{generation}::")}
    kinds = {name.partition("<")[0].removeprefix(f"{generation}::") for name in found}
    assert kinds == {"conv_kernel", "transposed_conv_kernel", "weight_gradient_kernel"}
    return found


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_89", "sm_90a"])
def test_registers_stay_registers(arch):
    for name, made in machine_code.resources(CUDA_LIBRARY, arch).items():
        assert made["spilled_bytes"] == 0, name
        assert made["registers"] <= 255, name


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_sm80_kernels(kernels, arch):
    """Tensor cores fed by ldmatrix, from shared memory that 16-byte asynchronous copies fill past the first cache."""
    for name, made in matrix_kernels(kernels, arch, "sm80").items():
        assert made["mma"] > 0, name
        assert made["ldmatrix"] > 0, name
        assert made["async_copies_past_l1"] == made["async_copies"] > 0, name
        assert made["global_16_bytes"] >= made["async_copies"], name


def test_sm90_kernels(kernels):
    """Warpgroups multiply out of shared memory, which the copy engine fills; results leave by it, too."""
    for name, made in matrix_kernels(kernels, "sm_90a", "sm90").items():
        assert made["wgmma"] > 0, name
        assert made["mma"] == 0, name
        assert made["tma_loads"] > 0, name
        assert made["tma_stores"] > 0 or "weight_gradient" in name, name  # which leaves float32 sums
        assert made["spilled_bytes"] == made["local"] == 0, name
    assert not [name for name in kernels.get("sm_80", ()) if name.startswith("sm90::")]


def test_sm90_convolutions_release_a_box_at_once(kernels):
    """Not after the epilogue's arithmetic, which the compiler may move in between."""
    matrix_kernels(kernels, "sm_90a", "sm90")
    functions = machine_code.dump("-sass", CUDA_LIBRARY, "sm_90a").split("Function : ")[1:]
    bodies = [text for text in functions if re.search(r"sm90.*\d\dconv_kernel", text.partition("\n")[0])]
    assert len(bodies) >= 10  # types × epilogues × strides
    for body in bodies:
        instructions = machine_code.NAME.findall(body)
        products_end = len(instructions) - 1 - instructions[::-1].index("WARPGROUP.DEPBAR.LE")
        assert any(name.startswith("SYNCS.ARRIVE") for name in instructions[products_end : products_end + 10])


def test_elementwise_kernels_move_16_bytes(kernels):
    for made in (row for rows in kernels.values() for name, row in rows.items() if name.startswith("activate_kernel")):
        assert made["global_16_bytes"] > 0
        assert made["global_narrower"] == 0
