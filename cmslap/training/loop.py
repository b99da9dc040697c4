"""The training loop. A run is a directory: checkpoint, exported weights, log and record."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from cmslap.errors import UserError
from cmslap.training import checkpoint, distributed, record
from cmslap.training.config import Config, to_dict
from cmslap.training.data import Pictures, Share, split
from cmslap.training.distributed import Workers
from cmslap.training.losses import pyramid_loss
from cmslap.training.schedule import factor
from cmslap.training.validation import ValidationSets

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
LAST, LOG, RECORD = "last.pt", "log.jsonl", "record.json"


class RunError(UserError, RuntimeError):
    """A run that cannot start or go on."""


class DataClock:
    """Time spent making batches: on the host's clock, on CUDA on the device's own, without waiting for it."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.spans: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self.seconds = 0.0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        if self.cuda:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self.spans.append((begin, end))
        else:
            begin = time.perf_counter()
            yield
            self.seconds += time.perf_counter() - begin

    def take(self) -> float:
        """Seconds since the last call."""
        if self.spans:
            self.spans[-1][1].synchronize()
            self.seconds += sum(begin.elapsed_time(end) for begin, end in self.spans) / 1000
            self.spans.clear()
        seconds, self.seconds = self.seconds, 0.0
        return seconds


class StopRequest:
    """Turns the first SIGINT or SIGTERM into ``signal``; a second one acts as usual."""

    def __init__(self) -> None:
        self.signal = 0

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, self.previous[number])

    def __enter__(self) -> StopRequest:
        self.previous = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


class Trainer:
    """One process of a run.

    Everything random of step k follows from (seed, k), everything else is in the checkpoint: a run that was killed
    and resumed goes through the same numbers as one that was not.
    """

    def __init__(self, config: Config, workers: Workers) -> None:
        self.config, self.workers, self.device = config, workers, workers.device
        self.out = Path(config.out)
        self.counts = split(config.batch, config.scales)
        torch.manual_seed(config.seed)
        self.model = config.build_model().to(self.device)
        if config.init:
            checkpoint.load_weights(self.model, Path(config.init))
        self.ema = copy.deepcopy(self.model).requires_grad_(False)
        self.forward = torch.compile(self.model, dynamic=False) if config.compile else self.model
        self.parameters = list(self.model.parameters())
        options = config.optimizer
        self.optimizer = OPTIMIZERS[options.name](
            self.parameters,
            lr=torch.tensor(options.lr) if config.compile else options.lr,
            betas=tuple(options.betas),
            eps=options.eps,
            weight_decay=options.weight_decay,
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "float16")
        self.pictures = Pictures(config.data, config.patch, self.device, progress=workers.first)
        self.validation = ValidationSets(config.validation.data if workers.first else [], config.validation_scales)
        self.log = checkpoint.Log(self.out / LOG)
        self.step = 0
        self.seconds, self.counted_until = 0.0, time.perf_counter()  # of the run, over all its resumed parts
        self.shown = 0.0
        self.best = -math.inf
        self.losses = torch.zeros(
            len(self.counts), dtype=torch.float64, device=self.device
        )  # summed since the last line
        self.summed = 0  # steps in that sum
        self.data_clock = DataClock(self.device)

    # One step

    def _losses(self, shares: list[Share]) -> Tensor:  # [number of scales]
        """Backpropagate this process's images; return its part of each scale's mean loss."""
        losses = torch.zeros(len(self.counts), device=self.device)
        precision = getattr(torch, self.config.precision)
        for share in shares:
            low = share.low
            if self.config.channels_last:
                low = low.contiguous(memory_format=torch.channels_last)
            with torch.autocast(self.device.type, precision, enabled=precision != torch.float32):
                outputs = self.forward(low, share.scale)
            loss = pyramid_loss(outputs, share.targets, self.config.loss).sum()
            self.scaler.scale(loss / self.config.batch).backward()
            losses[list(self.counts).index(share.scale)] = loss.detach() / self.counts[share.scale]
        return losses

    def _update(self) -> None:
        """One optimizer step from the gradients, and the averaged weights after it."""
        options = self.config.optimizer
        self.scaler.unscale_(self.optimizer)
        if options.clip:
            nn.utils.clip_grad_norm_(self.parameters, options.clip)
        self.optimizer.param_groups[0]["lr"] = self._lr(self.step)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=False)
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))  # the first weights are soon forgotten
        torch._foreach_lerp_(list(self.ema.parameters()), self.parameters, 1 - decay)

    def _lr(self, step: int) -> float:
        return self.config.optimizer.lr * factor(self.config.schedule, step, self.config.steps)

    def _train_step(self, stop: StopRequest) -> bool:
        """Run step ``self.step``; True when any process was asked to stop."""
        with self.data_clock.running():
            shares = self.pictures.batch(
                self.step, self.config.seed, self.counts, self.workers.rank, self.workers.world
            )
        losses = self._losses(shares)
        stopping = torch.tensor([float(stop.signal != 0)], device=self.device)
        self._sum_over_processes(losses, stopping)
        self._update()
        self.losses += losses
        self.summed += 1
        self.timed_steps += 1
        self.step += 1
        return bool(stopping)

    def _sum_over_processes(self, *others: Tensor) -> None:
        if self.workers.world == 1:
            return
        for parameter in self.parameters:
            if parameter.grad is None:  # this process had no image
                parameter.grad = torch.zeros_like(parameter)
        self.workers.sum([parameter.grad for parameter in self.parameters] + list(others))

    # The run

    def run(self, resume_hint: str) -> int:
        """Train up to the configured number of steps; 0 when done, 128 + the signal's number when stopped by one."""
        if self.step == 0:
            self._save()
        self._restart_clock()
        bar = tqdm(total=self.config.steps, initial=self.step, unit="step", disable=not self.workers.first)
        with bar, StopRequest() as stop:
            while self.step < self.config.steps:
                stopping = self._train_step(stop)
                bar.update()
                self._show(bar)
                self._after_step(stopping)
                if stopping and self.step < self.config.steps:
                    self._say(f"stopped after step {self.step}; go on with: {resume_hint}")
                    return 128 + (stop.signal or signal.SIGTERM)
        self._say(f"trained {self.step} steps; weights and record in {self.out}")
        return 0

    def _after_step(self, stopping: bool) -> None:
        """Log, validate and save where this step is one to do so."""
        config, last = self.config, self.step == self.config.steps
        if self.step % config.log_every == 0 or last:
            self._log()
        validating = bool(self.validation) and (self.step % config.validation.every == 0 or last)
        saving = self.step % config.checkpoint_every == 0 or last or stopping
        if validating:
            self._validate()
        if saving:
            self._save()
        if validating or saving:
            self._restart_clock()

    def _restart_clock(self) -> None:
        """Start timing: the log's speed leaves out validating and saving."""
        self.data_clock.take()
        self.timed_from, self.timed_steps = time.perf_counter(), 0

    def _show(self, bar: tqdm) -> None:
        now = time.perf_counter()
        if self.workers.first and now - self.shown > 1:  # reading the loss waits for the GPU, so not every step
            self.shown = now
            rate = self.timed_steps * self.config.batch / (now - self.timed_from)
            lr = self._lr(self.step - 1)
            bar.set_postfix_str(f"loss {self._scale_losses().mean():.5f}, lr {lr:.2e}, {rate:.1f} images/s")

    def _scale_losses(self) -> Tensor:  # [number of scales], on the CPU
        """Each scale's mean loss since the last log line."""
        return self.losses.cpu() / max(1, self.summed)

    def _log(self) -> None:
        scale_losses = self._scale_losses().tolist()
        images = sum(self.counts.values())
        loss = sum(value * n for value, n in zip(scale_losses, self.counts.values(), strict=True)) / images
        if not math.isfinite(loss):
            raise RunError(
                f"the loss is {loss} at step {self.step}: lower optimizer.lr or set optimizer.clip, "
                f"then go on from the last checkpoint with --resume"
            )
        seconds = time.perf_counter() - self.timed_from
        entry = {
            "step": self.step,
            "loss": loss,
            "losses": {f"{scale}x": value for scale, value in zip(self.counts, scale_losses, strict=True)},
            "lr": self._lr(self.step - 1),
            "images_per_second": round(self.timed_steps * self.config.batch / seconds, 2),
            "data_share": round(self.data_clock.take() / seconds, 4),  # of the time, spent on making batches
        }
        if self.workers.first:
            self.log.write(entry)
        self.losses.zero_()
        self.summed = 0
        self._restart_clock()

    def _validate(self) -> None:
        values = self.validation.measure(self.ema, self.device)
        mean = sum(values.values()) / len(values)
        self.log.write({"step": self.step, "psnr": values, "mean": mean})
        if mean > self.best:
            self.best = mean
            self._export("best")
        self._say(f"step {self.step}: " + ", ".join(f"{name} {value:.2f} dB" for name, value in values.items()))

    def _export(self, name: str) -> None:
        metadata = {"step": str(self.step), "training": json.dumps(to_dict(self.config))}
        checkpoint.export(self.out / f"{name}.safetensors", self.ema, metadata)

    def _save(self) -> None:
        if not self.workers.first:
            return
        self.log.sync()
        self._total_seconds()
        checkpoint.save(self.out / LAST, self._state())
        self._export("last")
        entries = self.log.read()
        made = record.build(
            self.config, self.device, self.workers.world, len(self.pictures), self.seconds, self.step, entries
        )
        checkpoint.write(self.out / RECORD, (json.dumps(made, indent=1) + "\n").encode())

    def _total_seconds(self) -> None:
        now = time.perf_counter()
        self.seconds, self.counted_until = self.seconds + now - self.counted_until, now

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "best": self.best,
            "seconds": self.seconds,
            "losses": self.losses,
            "summed": self.summed,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "config": to_dict(self.config),
            "pictures": self.pictures.fingerprint,
        }

    def resume(self) -> None:
        """Go back to the state of the run's last checkpoint, its log included."""
        state = checkpoint.load(self.out / LAST, self.device)
        if state["config"]["model"] != self.config.model:
            raise RunError(f"model is {self.config.model}, but {self.out} trains {state['config']['model']}")
        for change in _changes(state["config"], to_dict(self.config)):
            self._say(f"resuming with {change}")
        if state["pictures"] != self.pictures.fingerprint:
            self._say("resuming with other training images than before")
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        for name in ("step", "best", "seconds", "losses", "summed"):
            setattr(self, name, state[name])
        if self.workers.first:
            self.log.rewind(self.step)
        self._say(f"resumed after step {self.step}")

    def _say(self, text: str) -> None:
        if self.workers.first:
            tqdm.write(text, file=sys.stderr)


def _changes(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """What differs between two configurations, as ``key = new, was old``."""
    changes = []
    for key in new:
        if isinstance(new[key], dict) and isinstance(old.get(key), dict):
            changes += _changes(old[key], new[key], f"{prefix}{key}.")
        elif new[key] != old.get(key):
            changes.append(f"{prefix}{key} = {new[key]!r}, was {old.get(key)!r}")
    return changes


def _check_directory(out: Path, resume: bool) -> None:
    if resume and not (out / LAST).is_file():
        raise RunError(f"nothing to resume: {out / LAST} does not exist; leave out --resume to start a run")
    if not resume and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} exists already: go on with its run with --resume, or choose another out")


def train(config: Config, resume: bool = False, resume_hint: str = "--resume") -> int:
    """Run the training of ``config`` in ``config.out``; returns the exit status.

    Under ``torchrun`` each process calls this. ``resume_hint`` is the command line that a stopped run tells the user.
    Raises :class:`RunError`, and what reading the data or saving raises.
    """
    workers = distributed.start(config.device)
    try:
        if workers.first or resume:
            _check_directory(Path(config.out), resume)
        trainer = Trainer(config, workers)
        if resume:
            trainer.resume()
        return trainer.run(resume_hint)
    finally:
        distributed.stop(workers)
