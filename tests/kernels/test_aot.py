"""Every kernel compiles for GPUs this machine need not have, to tensor-core code without spills on Hopper."""

import json
import os

import pytest

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels don't compile")


@pytest.mark.parametrize(("arch", "instruction"), [(80, "mma"), (90, "wgmma")])
def test_kernels_compile_ahead_of_time(arch, instruction, tmp_path):
    from bench.gpu import aot

    aot.main(["--arch", str(arch), "--operands", "bf16", "--first-only", "--output", str(tmp_path)])
    record = json.loads((tmp_path / f"sm_{arch}.json").read_text())
    assert len(record["kernels"]) == 12
    for row in record["kernels"]:
        dense = row["launch"].startswith("dense")
        assert row[instruction] > 0 or (dense and row["mma"] > 0), row  # small tiles don't fill a warp group's product
        assert row["async_copies"] > 0 or dense, row
        assert arch == 80 or row["spilled_bytes"] == 0, row
