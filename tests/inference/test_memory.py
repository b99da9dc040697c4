import os
import subprocess
import sys

import pytest
import torch

import cmslap
from cmslap import ops
from cmslap.inference.memory import available_memory
from cmslap.ops import extension

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
SIDES = (64, 192)  # the difference between the two leaves out what does not depend on the image
PREPARE = """
import torch, cmslap
from pathlib import Path
from cmslap.inference import memory, plan, super_resolve
def peak():  # of this process alone, where getrusage may count its parent's
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
torch.set_num_threads(1)
model = cmslap.CMSLapSRN(depth=1, recursions=1, shared_conv=1)
torch.nn.init.normal_(model.conv_in.weight, std=0.1)
def enlarge(y, tile=None):
    return super_resolve(model, y[None], 4, plan.divide(model, 4, y.shape, tile))
"""
COMPARE_SIDES = f"""
peaks = []
for side in {SIDES}:
    enlarge(torch.rand(side, side), tile=0)
    peaks.append(peak())
print(peaks[1] - peaks[0])
"""
CAP = 2**25
WITH_A_CAP = f"""
memory.WORKING_MEMORY = {CAP}
tiles = []
model.register_forward_hook(lambda *arguments: tiles.append(peak()))
y = torch.rand(256, 256)
enlarge(y[:64, :64])
before = peak()
tiled = enlarge(y)
after = peak()
torch.testing.assert_close(tiled, enlarge(y, tile=0), rtol=0, atol=1e-5)
assert len(tiles) > 3
assert peak() > after + {CAP}
print(after - before)
"""


def measure(code, backend=""):
    """What ``code`` prints in a process of its own."""
    command = [sys.executable, "-c", PREPARE + code]
    environment = {**os.environ, "CMSLAP_BACKEND": backend}
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout)


@needs_proc
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_estimate_is_near_and_not_below_the_measured_peak(backend):
    if backend == "cpu" and extension.MISSING is not None:
        pytest.skip(extension.MISSING)
    with ops.use_backend(backend):
        estimate = (SIDES[1] ** 2 - SIDES[0] ** 2) * cmslap.CMSLapSRN().bytes_per_pixel(4)
    assert 0.4 * estimate < measure(COMPARE_SIDES, backend) < 1.1 * estimate


@needs_proc
def test_tiles_keep_the_working_memory_small():
    assert measure(WITH_A_CAP) < 1.5 * CAP  # the result too, 4 MB; in one piece it takes 6 times the cap


def test_available_memory_is_plausible():
    assert 2**26 < available_memory(torch.device("cpu")) < 2**50
