"""A training run: a directory with checkpoint, exported weights, log, curves and record."""

from __future__ import annotations

import math
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from cmslap import ops
from cmslap.checkpoints.checkpoint import save_model
from cmslap.files import write_json
from cmslap.provenance import provenance
from cmslap.training import directory, distributed, record
from cmslap.training.config import Config
from cmslap.training.data import DataClock, TrainingImages
from cmslap.training.directory import RunError
from cmslap.training.distributed import Workers
from cmslap.training.log import Log, curves_can_be_drawn, draw_curves
from cmslap.training.record import mean_loss
from cmslap.training.trainer import Trainer
from cmslap.training.validation import ValidationSets

CURVES_EVERY = 30  # seconds: drawing takes a good part of one


class StopRequest:
    """While entered, the first SIGINT or SIGTERM only sets ``signal`` to its number; a second one acts as usual."""

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


class Run:
    """One process of a run.

    Everything random of step k follows from (seed, k), everything else is in the checkpoint: a run that was killed
    and resumed goes through the same numbers as one that was not.
    """

    def __init__(self, config: Config, workers: Workers, resume: bool) -> None:
        self.config, self.workers, self.device = config, workers, workers.device
        self.out = Path(config.out)
        self.counts = config.counts
        self.step = 0
        self.best = -math.inf  # mean validation PSNR of best.safetensors
        self.seconds, self.counted_until = 0.0, time.perf_counter()  # of the run, over all its resumed parts
        self.losses = torch.zeros(len(self.counts), dtype=torch.float64, device=self.device)  # since the last log line
        self.summed = 0  # steps in that sum
        self.first_losses = torch.zeros(record.FIRST, len(self.counts), device=self.device)  # of each first step
        self.shown = self.drawn = time.perf_counter()
        self.data_clock = DataClock(self.device)
        self.stop_flag = torch.zeros(1, device=self.device)

        self.trainer = Trainer(config, workers)
        self.images = TrainingImages(config.data, config.patch, self.trainer.model, self.device, announce=workers.first)
        folders = config.validation.data if workers.first else []
        self.validation = ValidationSets(folders, config.validation_scales, self.trainer.model)
        self.init_sha256 = record.init_digest(config)
        self.origins = [{**provenance(self.device), "processes": workers.world}]  # of the run's parts
        self.resumed: list[dict[str, Any]] = []  # with which settings changed, and after which step
        if resume:
            self._resume()
        if workers.first:
            self.log = Log(self.out / directory.LOG, self.step, config.tensorboard)
            self.best = max([self.best, *(entry["mean"] for entry in self.log.read() if "mean" in entry)])
            if not curves_can_be_drawn():
                self._say("no curves.png: matplotlib is not installed; pip install cmslap[plot]")

    def _resume(self) -> None:
        state = directory.load_newest(self.out, self.device, self._say)
        old, new = state["config"], asdict(self.config)
        fixed = {key: (old[key], new[key]) for key in ("model", "scales")}
        fixed["optimizer.name"] = old["optimizer"]["name"], new["optimizer"]["name"]
        for key, (before, now) in fixed.items():
            if before != now:
                raise RunError(f"{key} = {now}: the run in {self.out} has {before}; start another with init")
        changes = record.changes(old, new)
        for key, (before, now) in changes.items():
            self._say(f"resuming with {key} = {now!r}, was {before!r}")
        if state["pictures"] != self.images.fingerprint:
            self._say("resuming with other training images than before")
        self.trainer.load(state)
        for name in directory.COUNTED:
            setattr(self, name, state[name])
        self.origins = [origin for origin in state.get("origins", []) if origin not in self.origins] + self.origins
        self.resumed = [*state.get("resumed", []), *([{"step": self.step, "changes": changes}] if changes else [])]
        self._say(f"resumed after step {self.step}")

    def train(self, resume_hint: str) -> int:
        """Train up to the configured number of steps; 0 when done, 128 + the signal's number when stopped by one."""
        self._save()
        if self._to_be_validated() and not any(e["step"] == self.step and "psnr" in e for e in self.log.read()):
            self._validate()  # what the run was killed in, after it had saved
        self._describe()
        self._restart_clock()
        interval = 0.2 if sys.stderr.isatty() else 10  # seconds; a bar that goes to a file should not fill it
        hidden = not self.workers.first
        bar = tqdm(total=self.config.steps, initial=self.step, unit="step", mininterval=interval, disable=hidden)
        with bar, StopRequest() as stop:
            while self.step < self.config.steps:
                stopping = self._train_step(stop)
                self._show(bar)
                bar.update()
                self._after_step(stopping)
                if stopping and self.step < self.config.steps:
                    self._say(f"stopped after step {self.step}; go on with: {resume_hint}")
                    return 128 + (stop.signal or signal.SIGTERM)
        self._say(f"trained {self.step} steps; weights and record in {self.out}")
        return 0

    def _train_step(self, stop: StopRequest) -> bool:
        """Run step ``self.step``; whether the run is to stop after it."""
        workers = self.workers
        with self.data_clock.running():
            batches = self.images.batch(self.step, self.config.seed, self.counts, workers.rank, workers.world)
        asked, self.stop_flag = self.stop_flag, torch.full_like(self.stop_flag, stop.signal)
        losses = self.trainer.learn(self.step, batches, self.stop_flag)
        self.losses += losses
        if self.step < len(self.first_losses):
            self.first_losses[self.step] = losses
        self.summed += 1
        self.timed_steps += 1
        self.step += 1
        # All processes must stop at one step. Reading the sum of the step before does not wait for this one's.
        return bool(asked) if workers.world > 1 else stop.signal != 0

    def _after_step(self, stopping: bool) -> None:
        """Log, save and validate where this step is one to do so. Validating can take long: saving comes first."""
        config, last = self.config, self.step == self.config.steps
        validating, saving = self._to_be_validated(), self.step % config.checkpoint_every == 0 or last or stopping
        if self.step % config.log_every == 0 or last:
            self._log()
        if saving:
            self._save()
        if validating:
            self._validate()
        if saving:
            self._describe(ending=last or stopping)
        if validating or saving:
            self._restart_clock()

    def _to_be_validated(self) -> bool:
        """Whether validation belongs to the step that was last."""
        due = self.step % self.config.validation.every == 0 or self.step == self.config.steps
        return bool(self.validation) and self.step > 0 and due

    def _restart_clock(self) -> None:
        """Start timing: the log's speed leaves out validating and saving."""
        self.data_clock.take()
        self.timed_from, self.timed_steps = time.perf_counter(), 0

    def _show(self, bar: tqdm) -> None:
        now = time.perf_counter()
        if self.workers.first and now - self.shown > 1:  # reading the loss waits for the GPU, so not every step
            self.shown = now
            rate = self.timed_steps * self.config.batch / (now - self.timed_from)
            loss, lr = mean_loss(self._scale_losses(), self.counts), self.trainer.lr(self.step - 1)
            bar.set_postfix_str(f"loss {loss:.5f}, lr {lr:.2e}, {rate:.1f} images/s", refresh=False)

    def _scale_losses(self) -> Tensor:  # [number of scales], on the CPU
        """Each scale's mean loss since the last log line."""
        return self.losses.cpu() / max(1, self.summed)

    def _log(self) -> None:
        self._check_finite()
        scale_losses = self._scale_losses()
        seconds = time.perf_counter() - self.timed_from
        entry = {
            "step": self.step,
            "loss": mean_loss(scale_losses, self.counts),
            "losses": {f"{scale}x": loss for scale, loss in zip(self.counts, scale_losses.tolist(), strict=True)},
            "lr": self.trainer.lr(self.step - 1),
            "images_per_second": round(self.timed_steps * self.config.batch / seconds, 2),
            "data_share": round(self.data_clock.take() / seconds, 4),  # of the time, spent on making batches
        }
        if self.workers.first:
            self.log.write(entry)
        self.losses.zero_()
        self.summed = 0
        self._restart_clock()

    def _check_finite(self) -> None:
        """Keep a run that has diverged from going on, and from overwriting its last good checkpoint."""
        if not (self.losses.isfinite().all() and self.trainer.finite()):
            raise RunError(
                f"loss or weights are no longer finite at step {self.step}; go on from the last checkpoint "
                f"with --resume and a lower optimizer.lr, or with optimizer.clip"
            )

    def _validate(self) -> None:
        with ops.use_backend(None):  # one that is forced for training need not serve float32, nor these sizes
            values = self.validation.measure(self.trainer.average)
        mean = sum(values.values()) / len(values)
        if mean > self.best:
            self.best = mean
            self._export("best")
        self.log.write({"step": self.step, "psnr": values, "mean": mean})  # last: what it says is done
        self._say(f"step {self.step}: " + ", ".join(f"{name} {value:.2f} dB" for name, value in values.items()))

    def _export(self, name: str) -> None:
        save_model(self.trainer.average, self.out / f"{name}.safetensors", {"step": str(self.step)})

    def _save(self) -> None:
        self._check_finite()
        now = time.perf_counter()
        self.seconds, self.counted_until = self.seconds + now - self.counted_until, now
        if not self.workers.first:
            return
        self.log.sync()
        directory.save(self.out, {**self._state(), **self.trainer.state()})
        self._export("last")

    def _describe(self, ending: bool = False) -> None:
        """Write the record and the curves; these now and then, and at the end."""
        if not self.workers.first:
            return
        now, entries = time.perf_counter(), self.log.read()
        first = [mean_loss(losses, self.counts) for losses in self.first_losses[: self.step].cpu()]
        made = record.build(self._state(), self.init_sha256, len(self.images), first, entries)
        write_json(self.out / "record.json", made)
        if curves_can_be_drawn() and (ending or now - self.drawn > CURVES_EVERY):
            draw_curves(self.out / "curves.png", entries)
            self.drawn = now

    def _state(self) -> dict[str, Any]:
        about = {"config": asdict(self.config), "pictures": self.images.fingerprint}
        return {name: getattr(self, name) for name in (*directory.COUNTED, "origins", "resumed")} | about

    def _say(self, text: str) -> None:
        if self.workers.first:
            tqdm.write(text, file=sys.stderr)


def train(config: Config, resume: bool = False, resume_hint: str = "--resume") -> int:
    """Run the training of ``config`` in ``config.out``; returns the exit status.

    Under ``torchrun`` each process calls this. ``resume_hint`` is the command line that a stopped run tells the user.
    Raises :class:`RunError`, and what reading the data or saving raises.
    """
    workers, out = distributed.start(config.device), Path(config.out)
    try:
        if not workers.first:
            return Run(config, workers, resume).train(resume_hint)
        directory.check(out, resume)
        with directory.claimed(out):
            directory.check(out, resume)  # again: until now another run could have changed it
            return Run(config, workers, resume).train(resume_hint)
    except torch.OutOfMemoryError as error:
        raise RunError(f"the GPU's memory is full; lower batch or patch ({error})") from error
    finally:
        distributed.stop(workers)
