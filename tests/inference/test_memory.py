import subprocess
import sys

import pytest
import torch

import cmslap
from cmslap.inference.memory import available_memory, bytes_per_pixel

SIDES = (64, 160)  # the difference between the two leaves out what does not depend on the picture
MEASURE = f"""
import torch, cmslap
from pathlib import Path
def peak():  # of this process alone, where getrusage may count its parent's
    return next(int(l.split()[1]) for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM"))
torch.set_num_threads(1)
model, peaks = cmslap.CMSLapSRN(depth=1, recursions=1, shared_conv=1), []
with torch.inference_mode():
    for side in {SIDES}:
        model(torch.rand(1, 1, side, side), 4)
        peaks.append(1024 * peak())
print(peaks[1] - peaks[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_estimate_is_not_below_the_measured_peak():
    done = subprocess.run([sys.executable, "-c", MEASURE], check=True, capture_output=True, text=True)
    estimate = (SIDES[1] ** 2 - SIDES[0] ** 2) * bytes_per_pixel(cmslap.CMSLapSRN(), 4)
    assert 0.05 * estimate < int(done.stdout) < 1.1 * estimate  # fused operations keep fewer maps alive


def test_available_memory_is_plausible():
    assert 2**26 < available_memory(torch.device("cpu")) < 2**50
