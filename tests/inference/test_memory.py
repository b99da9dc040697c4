import os
import subprocess
import sys

import pytest
import torch

import cmslap
from cmslap import ops
from cmslap.inference.tiling import available_memory
from cmslap.ops import extension

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
SIDES = (64, 192)  # the difference between the two leaves out what does not depend on the image
PREPARE = """
import torch, cmslap
from pathlib import Path
from cmslap.devices import inference_autocast
from cmslap.inference import tiling
def peak():  # of this process alone, where getrusage may count its parent's
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
torch.set_num_threads(1)
model = cmslap.{}
torch.nn.init.normal_(model.conv_in.weight, std=0.1)
def enlarge(y, tile=None, scale=4):
    y = y.expand(model.image_channels, -1, -1)
    tiles, autocast = tiling.divide(model, scale, y.shape[1:], tile), inference_autocast("float32", y.device)
    return torch.cat([*tiling.super_resolve_rows(model, y, scale, tiles, autocast=autocast)], -2)
"""
COMPARE_SIDES = f"""
peaks = []
for side in {SIDES}:
    enlarge(torch.rand(side, side), 0, model.scales[1])
    peaks.append(peak())
print(peaks[1] - peaks[0])
"""
CAP = 2**25
WITH_A_CAP = f"""
tiling.WORKING_MEMORY = {CAP}
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


SMALL = "CMSLapSRN(depth=1, recursions=1, shared_conv=1)"  # but in its width


def measure(code, network=SMALL, backend=""):
    """What ``code`` prints in a process of its own."""
    command = [sys.executable, "-c", PREPARE.format(network) + code]
    environment = {**os.environ, "CMSLAP_BACKEND": backend}
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout)


@needs_proc
@pytest.mark.parametrize(
    ("network", "backend"),
    [
        *((SMALL, backend) for backend in ("cpu", "reference")),
        *(("VDSR(depth=3)", backend) for backend in ("cpu", "reference")),
        ("MASRN(channels=8)", "cpu"),  # the refine block's maps are the widest
    ],
)
def test_estimate_is_near_and_not_below_the_measured_peak(network, backend):
    if backend == "cpu" and extension.MISSING is not None:
        pytest.skip(extension.MISSING)
    model = eval(network, vars(cmslap.models))
    with ops.use_backend(backend):
        estimate = (SIDES[1] ** 2 - SIDES[0] ** 2) * model.bytes_per_pixel(model.scales[1])
    peak = measure(COMPARE_SIDES, network, "" if backend == "cpu" else backend)
    assert 0.3 * estimate < peak < 1.1 * estimate


@needs_proc
def test_tiles_keep_the_working_memory_small():
    assert measure(WITH_A_CAP) < 1.5 * CAP  # the result too, 4 MB; in one piece it takes 6 times the cap


def test_available_memory_is_plausible():
    assert 2**26 < available_memory(torch.device("cpu")) < 2**50
