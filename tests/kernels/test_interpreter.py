import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

triton = pytest.importorskip("triton")
VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])


@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="this is the interpreter's process")
@pytest.mark.skipif(
    VERSION < (3, 8) and np.lib.NumpyVersion(np.__version__) >= "2.4.0",
    reason="Triton's interpreter works with NumPy 2.4 from version 3.8 on",
)
def test_every_kernel_in_the_interpreter():
    """Triton reads TRITON_INTERPRET when kernels are defined, so their interpreted tests need a fresh process."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__).parent)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    print(run.stdout, run.stderr)
    assert run.returncode == 0
    assert " passed" in run.stdout


def test_poison():
    """What the other tests rely on to notice elements that no kernel wrote."""
    assert torch.ones(2).new_empty(3).isnan().all()
