"""Training on a video and its scenes."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from cmslap.models import RLRDSR
from cmslap.video import footage, scenes
from cmslap.video.adaptation import Adaptation, Schedule, reference_of
from cmslap.video.encode import shares_of_frames
from cmslap.video.footage import Footage
from cmslap.video.frames import Frame, bicubic


def film(folder: Path, frames=6, height=20, width=24, white=255) -> Footage:
    """Random small frames, and large ones that repeat their samples with a slope on top."""
    dtype = np.uint8 if white == 255 else np.uint16
    form = "yuv420p" if white == 255 else "yuv420p10le"

    def pair():
        low = np.random.randint(white // 8, white // 2, (height, width)).astype(dtype)
        slope = np.tile(np.array([0, white // 16], dtype), (2 * height, width))
        high = np.repeat(np.repeat(low, 2, 0), 2, 1) + slope
        return Frame((low,), form, 0, 1), Frame((high,), form, 0, 1)

    footage.write((pair() for _ in range(frames)), folder / "footage.bin", frames, 2)
    return Footage(folder / "footage.bin")


def network():
    return RLRDSR(recursions=1, channels=4, growth=3)


def train(shots, schedule, state, model=None, reference=None):
    """Train; a clock that counts makes a step last a second."""
    model = network() if model is None else model
    places = shots.kept(0, shots.frames)
    adaptation = Adaptation(model, shots, places, schedule, reference, clock=itertools.count().__next__)
    adaptation.run(state)
    return model


def test_crops_are_of_the_same_place(tmp_path):
    for white in (255, 1023):
        shots = film(tmp_path, white=white)
        low, high = shots.crops(shots.kept(2, 5), 5, 8, np.random.default_rng())
        assert low.shape == (5, 1, 8, 8)
        assert high.shape == (5, 1, 16, 16)
        torch.testing.assert_close(high[:, :, ::2, ::2], low)
        assert 0 < low.max() <= 0.5


def test_scenes_that_need_little_are_drawn_often(tmp_path):
    """Bicubic interpolation errs by 4, 1 and 0 levels in scenes of 3, 5 and 2 frames; rounding errs by a quarter."""

    def pairs():
        for error in [4] * 3 + [1] * 5 + [0] * 2:
            low = np.random.randint(0, 200, (6, 6), dtype=np.uint8)
            yield Frame((low,), "gray", 0, 1), Frame((bicubic(low, (12, 12), 255) + np.uint8(error),), "gray", 0, 1)

    footage.write(pairs(), tmp_path / "footage.bin", 10, 2)
    shots = Footage(tmp_path / "footage.bin")
    shares = shares_of_frames(shots, [0, 3, 8])
    expected = np.array([1] * 3 + [2] * 5 + [4] * 2)  # the roots
    np.testing.assert_allclose(shares, expected / expected.sum())
    crops, _ = shots.crops(shots.kept(0, 10), 4, 6, np.random.default_rng(), np.eye(10)[7])
    np.testing.assert_allclose(crops[:, 0] * 255, np.tile(shots.low(7), (4, 1, 1)), rtol=1e-6)


def test_of_a_long_video_some_frames_are_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(footage, "LARGEST", 4 * 20 * 24 * 5)
    shots = film(tmp_path, frames=11)
    assert len(shots.data) <= 4
    assert shots.frames == 11
    spans = [(0, 1), (1, 2), (2, 7), (7, 11)]
    assert all(len(shots.kept(*span)) and shots.kept(*span).max() < len(shots.data) for span in spans)


def test_training_lowers_the_loss(tmp_path):
    shots = film(tmp_path)
    schedule = Schedule(60, 5e-3, batch=2, side=16)
    model = network()
    before = loss(model, shots)
    train(shots, schedule, tmp_path / "state.pt", model)
    assert loss(model, shots) < 0.9 * before


def loss(model, shots):
    with torch.no_grad():
        low, high = shots.crops(shots.kept(0, shots.frames), 8, 20, np.random.default_rng(0))
        return float((model(low)[-1] - high).abs().mean())


def test_a_run_that_was_killed_ends_as_it_would_have(monkeypatch, tmp_path):
    monkeypatch.setattr("cmslap.video.adaptation.SAVE_SECONDS", 3)
    shots, schedule, start = film(tmp_path), Schedule(14, 2e-3, batch=2, side=8, price=1), network()
    whole = train(shots, schedule, tmp_path / "whole.pt", network_like(start), reference_of(start))

    class KilledError(Exception):
        pass

    steps = itertools.count()
    once = Adaptation._step

    def step(self):
        if next(steps) == 9:
            raise KilledError
        return once(self)

    with monkeypatch.context() as patched:
        patched.setattr(Adaptation, "_step", step)
        with pytest.raises(KilledError):
            train(shots, schedule, tmp_path / "cut.pt", network_like(start), reference_of(start))
    resumed = train(shots, schedule, tmp_path / "cut.pt", network(), reference_of(start))
    for one, two in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two)


def network_like(model):
    copy = network()
    copy.load_state_dict(model.state_dict())
    return copy


def test_a_price_keeps_weights_at_the_reference(tmp_path):
    shots, start = film(tmp_path), network()
    reference = reference_of(start)
    kept = {}
    for price in (0, 0.3, 3e4):
        schedule = Schedule(20, 2e-3, batch=2, side=16, price=price)
        model = train(shots, schedule, tmp_path / f"{price}.pt", network_like(start), reference)
        equal = [(one == two).float().mean() for one, two in zip(model.parameters(), reference, strict=True)]
        kept[price] = float(np.mean(equal))
    assert kept[0] < 0.4  # only weights of units that ReLU keeps at zero
    assert kept[0] < kept[0.3] < kept[3e4] == 1


def test_the_step_of_the_price_minimises_what_it_should(tmp_path):
    """min λ lr |w − r| + ½ √v (w − w′)², for each weight, in float64."""
    shots, start = film(tmp_path), network()
    reference = [weight + 1e-3 * torch.randn_like(weight) for weight in reference_of(start)]
    adaptation = Adaptation(start, shots, shots.kept(0, 6), Schedule(5, 1e-3, price=1e-3, batch=1, side=8), reference)
    adaptation._step()
    before = reference_of(start)
    amount = 1e-7
    adaptation._shrink(amount)
    for parameter, first, anchor in zip(start.parameters(), before, reference, strict=True):
        second_moment = adaptation.adam.state[parameter]["exp_avg_sq"].double() / (1 - 0.999)
        metric = second_moment.sqrt() + 1e-8
        found, best = parameter.detach().double(), None
        for step in (0, -1e-5, -1e-6, 1e-6, 1e-5):
            weight = found + step
            cost = amount * (weight - anchor).abs() + metric * (weight - first).square() / 2
            best = cost if best is None else best
            slack = 1e-3 * amount * (first - anchor).abs() + 1e-16  # the weights are float32
            assert (best <= cost + slack).all()


def test_what_the_price_left_at_the_reference_stays_there(monkeypatch, tmp_path):
    shots, start = film(tmp_path), network()
    reference, differing = reference_of(start), []
    once = Adaptation._step

    def step(self):
        loss = once(self)
        differing.append(torch.cat([(p != r).flatten() for p, r in zip(self.parameters, reference, strict=True)]))
        return loss

    monkeypatch.setattr(Adaptation, "_step", step)
    train(shots, Schedule(40, 2e-3, batch=2, side=16, price=0.3), tmp_path / "state.pt", start, reference)
    chosen = differing[11]
    assert 0 < chosen.sum() < len(chosen)
    assert not any((later & ~chosen).any() for later in differing[12:])
    assert differing[-1].sum() >= chosen.sum() - 2  # a weight may come back by chance


def test_scenes_of_a_length():
    assert scenes.fixed(96, 32) == [0, 32, 64]
    assert scenes.fixed(100, 32) == [0, 32, 64]
    assert scenes.fixed(110, 32) == [0, 32, 64, 96]
    assert scenes.fixed(1, 32) == [0]
    assert scenes.fixed(5, 2) == [0, 2]


def test_scenes_begin_where_the_picture_changes():
    white = 255
    shots = [np.random.randint(low, low + 40, (40, 60)) for low in (10, 120, 60)]
    lumas = [shots[shot].astype(np.uint8) for shot in (0,) * 20 + (1,) * 12 + (2,) * 9]
    lumas[25] = np.full((40, 60), 250, np.uint8)  # a flash soon after a cut
    assert scenes.cuts(iter(lumas), white) == [0, 20, 32]
    assert scenes.cuts(iter(lumas[:1]), white) == [0]
