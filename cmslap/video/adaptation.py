"""Training a network on one video, and a copy of it on each scene with a price on what differs.

The loss is L1(ŷ, y) + λ ∑ |W_video − W|: a mean over pixels in percent of the range, a sum over weights. (The paper
does not say. With images in [0, 1] λ = 0.003 leaves a scene a dozen weights; as a mean over weights it does nothing.)
Errors of less than two levels count by their square (smooth L1): a scene of 50 dB has hardly larger ones, and the
medians that L1 makes of them cost it PSNR.
The price is paid by the proximal step of Adam, which puts a weight exactly at the video's where its subgradient would
let it swing around it. It decides which weights differ, early, and would then keep them too near to the video's: so
these train on without it.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from cmslap.files import replacing
from cmslap.models import Network
from cmslap.video.footage import Footage

SMALL = 2 / 255  # an error from which on L1 is L1
PERCENT = 100  # the loss that λ is a price in is in percent; what is minimised here is a hundredth of it
CHOOSING = 0.3  # of the time of a training with a price: after it no further weight comes to differ, none pays
SAVE_SECONDS = 10  # what a kill costs at most


@dataclass(frozen=True)
class Schedule:
    """How long to train, and with what."""

    seconds: float  # of training; the learning rate falls to nothing over them
    rate: float  # Adam's, in the beginning
    batch: int = 8
    side: int = 32  # pixels of a crop of a small frame
    price: float = 0  # λ
    seed: int = 0


class Adaptation:
    """Training ``network`` in place on the frames at ``places``, each drawn as often as ``shares`` says.

    ``reference`` are the weights λ keeps it at.
    """

    def __init__(
        self,
        network: Network,
        footage: Footage,
        places: np.ndarray,
        schedule: Schedule,
        reference: Sequence[Tensor] | None = None,
        shares: np.ndarray | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.network, self.footage, self.places, self.schedule = network.train(), footage, places, schedule
        self.parameters = list(network.parameters())
        self.reference, self.shares, self.clock = reference, shares, clock
        self.adam = torch.optim.Adam(self.parameters, schedule.rate)
        self.steps, self.seconds = 0, 0.0

    def run(self, state: Path, progress: tqdm | None = None) -> None:
        """Train until the time is up, from where ``state`` left it; that file keeps what a kill would lose."""
        if state.exists():
            self._load(state)
        saved = self.seconds
        while self.seconds < self.schedule.seconds:
            begin = self.clock()
            loss = self._step()
            spent = self.clock() - begin
            self.seconds += spent
            if progress is not None:
                progress.update(min(spent, max(0.0, progress.total - progress.n)))
                progress.set_postfix_str(f"loss {loss:.4f}", refresh=False)
            if self.seconds - saved > SAVE_SECONDS:
                self._save(state)
                saved = self.seconds
        self._save(state)

    def _step(self) -> float:
        random = np.random.default_rng((self.schedule.seed, self.steps))
        low, high = self.footage.crops(self.places, self.schedule.batch, self.schedule.side, random, self.shares)
        rate = self.schedule.rate * 0.5 * (1 + math.cos(math.pi * min(1, self.seconds / self.schedule.seconds)))
        self.adam.param_groups[0]["lr"] = rate
        low = low.contiguous(memory_format=torch.channels_last)
        loss = F.smooth_l1_loss(self.network(low, self.footage.shape.scale)[-1], high, beta=SMALL)
        self.adam.zero_grad()
        loss.backward()
        self._update(rate)
        return loss.item()

    def _update(self, rate: float) -> None:
        self.steps += 1
        if self.reference is None or not self.schedule.price:
            self.adam.step()
        elif self.seconds < CHOOSING * self.schedule.seconds:
            self.adam.step()
            self._shrink(rate * self.schedule.price / PERCENT)
        else:
            self._move_those_that_differ()

    @torch.no_grad()
    def _move_those_that_differ(self) -> None:
        same = [parameter == reference for parameter, reference in zip(self.parameters, self.reference, strict=True)]
        self.adam.step()
        for parameter, reference, mask in zip(self.parameters, self.reference, same, strict=True):
            parameter.copy_(torch.where(mask, reference, parameter))

    @torch.no_grad()
    def _shrink(self, amount: float) -> None:
        """Adam's proximal step: each difference comes nearer to zero by ``amount`` in the step's own metric."""
        settings = self.adam.param_groups[0]
        correction = 1 - settings["betas"][1] ** self.steps
        for parameter, reference in zip(self.parameters, self.reference, strict=True):
            root = (self.adam.state[parameter]["exp_avg_sq"] / correction).sqrt_().add_(settings["eps"])
            difference = parameter - reference
            shrunk = difference.sign() * (difference.abs() - amount / root).clamp_(min=0)
            parameter.copy_(reference + shrunk)

    def _save(self, path: Path) -> None:
        state = {"network": self.network.state_dict(), "adam": self.adam.state_dict()}
        with replacing(path) as temporary:
            torch.save({**state, "steps": self.steps, "seconds": self.seconds}, temporary)

    def _load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.adam.load_state_dict(state["adam"])
        self.steps, self.seconds = state["steps"], state["seconds"]


def reference_of(network: nn.Module) -> list[Tensor]:
    """The weights of a network as they are now."""
    return [parameter.detach().clone() for parameter in network.parameters()]
