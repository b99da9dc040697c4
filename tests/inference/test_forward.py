import torch

from cmslap.inference.forward import MEMBERS, self_ensemble


def test_a_pixelwise_network_is_unchanged():
    y = torch.rand(5, 7)
    torch.testing.assert_close(self_ensemble(lambda t: 2 * t, y), 2 * y)


def test_every_flip_and_rotation_is_run_once():
    y, seen = torch.arange(6.0).view(2, 3), []

    def run(turned):
        assert turned.is_contiguous()
        seen.append(turned.clone())
        return turned

    self_ensemble(run, y)
    assert len({(tuple(t.shape), tuple(t.flatten().tolist())) for t in seen}) == len(seen) == MEMBERS


def test_the_result_turns_with_the_image():
    """What a lopsided network makes of a turned image is, averaged, the turned result: that is what it is for."""
    kernel = torch.rand(1, 1, 3, 3)

    def lopsided(t):
        return torch.nn.functional.conv_transpose2d(t[None, None], kernel, stride=2)[0, 0, :-1, :-1]

    y = torch.rand(6, 4)
    result = self_ensemble(lopsided, y)
    for turn in (lambda t: t.flip(-1), lambda t: t.rot90(1, (-2, -1)), lambda t: t.mT):
        torch.testing.assert_close(self_ensemble(lopsided, turn(y)), turn(result))
    assert not torch.allclose(lopsided(y.flip(-1)), lopsided(y).flip(-1))
