"""Two processes under torchrun train as one does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cmslap.checkpoints.checkpoint import load_model
from cmslap.training.loop import train


def losses(out):
    return [json.loads(line)["losses"] for line in (Path(out) / "log.jsonl").read_text().splitlines()]


def test_two_processes_follow_one(configure, table, environment, tmp_path):
    """Three images a step: the 2x image belongs to one process, the two 4x images to one each.

    With Adam's usual eps, a gradient that is all but zero could turn a rounding into a step of its own.
    """
    settings = {"batch": 3, "optimizer": {"lr": 1e-3, "eps": 1e-3, "clip": 0.1}}
    alone = configure(**settings)
    train(alone)
    out = tmp_path / "two"
    file = tmp_path / "two.toml"
    file.write_text(
        f'out = "{out}"\nsteps = 12\nbatch = 3\npatch = 16\nscales = [2, 4]\nlog_every = 1\ncheckpoint_every = 5\n'
        f"[model]\n{toml(table['model'])}[data]\n{toml(table['data'])}[optimizer]\nlr = 1e-3\neps = 1e-3\nclip = 0.1\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "cmslap", "train", str(file)], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("trained 12 steps") == 1  # one process speaks
    assert json.loads((out / "record.json").read_text())["processes"] == 2
    for ours, theirs in zip(losses(out), losses(alone.out), strict=True):
        for scale in theirs:
            assert abs(ours[scale] - theirs[scale]) < 1e-6
    expected = load_model(Path(alone.out) / "last.safetensors").state_dict()
    for name, tensor in load_model(out / "last.safetensors").state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-6)


PROGRAM = """
import os, sys, torch
from cmslap.training import distributed
workers = distributed.start("cpu")
parameter = torch.ones(3, requires_grad=True)
parameter.grad = torch.full((3,), 1.0 + workers.rank)
workers.sum([parameter.grad])
torch.optim.SGD([parameter]).step()  # imports much of torch
distributed.stop(workers)
names = [open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task")]
sys.exit(parameter.grad.tolist() != [3.0] * 3 or any("gloo" in name for name in names))
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads' names are read from /proc")
def test_no_thread_outlives_the_process_group(environment, tmp_path):
    """A thread of Gloo's that lets go of a tensor while the interpreter ends aborts the process."""
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launcher, str(file)], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


def toml(table):
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
