"""Does a training record still hold? Rerun its first steps and compare their losses."""

from __future__ import annotations

import json
from pathlib import Path

from tqdm import trange

from cmslap.errors import UserError
from cmslap.training import distributed
from cmslap.training.config import Config
from cmslap.training.data import TrainingImages
from cmslap.training.loop import mean_loss
from cmslap.training.record import init_digest
from cmslap.training.trainer import Trainer

TOLERANCE = 0.01  # of a loss: other processors round differently, and training amplifies that


class RecordError(UserError, ValueError):
    """A record without what a rerun is compared with."""


def reproduce(path: Path, config: Config) -> int:
    """Rerun the first steps of the record at ``path``, whose configuration is ``config``; nothing is written.

    Prints the largest difference of a loss, and returns 0 if it is within :data:`TOLERANCE`, else 1. With the
    record's commit, kind of processor and number of threads there is none.
    """
    record = json.loads(path.read_text(encoding="utf-8")) if path.suffix == ".json" else {}
    recorded = record.get("first_losses")
    if not recorded:
        raise RecordError(f"{path} keeps no losses of first steps to compare with: a run's record.json is expected")
    begun_from = record.get("init_sha256")
    if begun_from and begun_from != init_digest(config):
        raise RecordError(
            f"init = {config.init!r} are not the weights this run began from; give theirs with init=FILE. Those that "
            "came with the package then are in its history: "
            f"git show {record['commit'].removesuffix('-dirty')}:cmslap/weights/NAME.safetensors"
        )
    differences = [abs(loss / was - 1) for loss, was in zip(losses(config, len(recorded)), recorded, strict=True)]
    worst = max(range(len(differences)), key=differences.__getitem__)
    equal = sum(difference == 0 for difference in differences)
    print(
        f"{len(recorded)} losses, {equal} of them equal to the bit; "
        f"the largest relative difference is {differences[worst]:.1e}, in step {worst + 1}"
    )
    return int(differences[worst] > TOLERANCE)


def losses(config: Config, steps: int) -> list[float]:
    """The losses of a run's first steps, in one process."""
    workers = distributed.start(config.device)
    try:
        trainer, counts = Trainer(config, workers), config.counts
        images = TrainingImages(config.data, config.patch, trainer.model, workers.device)
        values = []
        for step in trange(steps, desc="rerunning", unit="step"):
            scale_losses = trainer.learn(step, images.batch(step, config.seed, counts))
            values.append(mean_loss(scale_losses.cpu(), counts))
        return values
    finally:
        distributed.stop(workers)
