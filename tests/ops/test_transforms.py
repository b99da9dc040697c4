"""torch.func's transforms and forward-mode derivatives are those of the definition, whatever backend would run."""

import functools

import pytest
import torch
from torch.autograd import forward_ad

import cmslap
from cmslap import ops
from cmslap.ops import extension
from cmslap.ops.dispatch import BackendError

C = 16


def level(u, weights, biases):
    return ops.lapsrn_level(u, weights, biases, 1, biases[0], 2)


CALLS = {
    "conv2d_lrelu": lambda u, weights, biases: ops.conv2d_lrelu(u, weights[0], biases[0]),
    "recursive_embedding": lambda u, weights, biases: ops.recursive_embedding(u, weights, biases, 2),
    "tied_conv_transpose2d": lambda u, weights, biases: ops.tied_conv_transpose2d(u, weights[0], biases[0]),
    "lapsrn_level": level,
    "residual_head": lambda u, weights, biases: ops.residual_head(
        u, u[:, :1, ::2, ::2], weights[0, :1], biases[0, :1], weights[0, :1, :1, :1, :1].expand(1, 1, 4, 4)
    ),
}
TRANSFORMS = {
    "jvp": lambda f, u, t: torch.func.jvp(f, (u,), (t,))[1],
    "jacfwd": lambda f, u, t: torch.func.jacfwd(lambda u: f(u).sum((2, 3)))(u),
    "jacrev": lambda f, u, t: torch.func.jacrev(lambda u: f(u).sum((2, 3)))(u),
    "grad": lambda f, u, t: torch.func.grad(lambda u: f(u).square().sum())(u),
    "vmap": lambda f, u, t: torch.func.vmap(f)(torch.stack([u, t])),
}


@pytest.fixture
def arguments():
    return torch.randn(1, C, 4, 6), torch.randn(2, C, C, 3, 3) / 10, torch.randn(2, C)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("call", CALLS)
def test_transforms(call, transform, arguments):
    u, *parameters = arguments
    tangent = torch.randn_like(u)
    found = TRANSFORMS[transform](lambda u: CALLS[call](u, *parameters), u, tangent)
    exact = [parameter.double() for parameter in parameters]
    with ops.use_backend("reference"):
        expected = TRANSFORMS[transform](lambda u: CALLS[call](u, *exact), u.double(), tangent.double())
    assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_dual_numbers_through_a_network():
    network = cmslap.CMSLapSRN(depth=1, recursions=2, channels=C, shared_conv=1).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    y, tangent = torch.rand(1, 1, 5, 4, dtype=torch.double), torch.randn(1, 1, 5, 4, dtype=torch.double)
    expected = (network(y + 1e-6 * tangent, 4)[-1] - network(y - 1e-6 * tangent, 4)[-1]) / 2e-6
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(network.float()(forward_ad.make_dual(y.float(), tangent.float()), 4)[-1]).tangent
    assert (found - expected).norm() <= 1e-3 * expected.norm()


def test_a_forced_backend_says_that_it_cannot(arguments):
    u, weights, _ = arguments
    backend = next((name for name in ("cpu",) if "cpu" not in ops.explain("conv2d_lrelu", u, weights[0]).others), None)
    if backend is None:
        pytest.skip("the CPU extension is not built")
    with ops.use_backend(backend), pytest.raises(BackendError, match="go through the definition"):
        torch.func.grad(lambda u: ops.conv2d_lrelu(u, weights[0]).sum())(u)


BAD = [  # an operator of torch.ops.cmslap with arguments that do not fit; today's kernels would read out of bounds
    ("conv2d_lrelu", lambda u, w, b: (u, w[0, :, :-1], b[0], None, 0.2, "cpu")),
    ("conv2d_lrelu", lambda u, w, b: (u, w[0], b[0, :-1], None, 0.2, "cpu")),
    ("conv2d_lrelu", lambda u, w, b: (u, w[0], None, u[..., :-1], 0.2, "cpu")),
    ("conv2d_lrelu", lambda u, w, b: (u.double(), w[0], None, None, 0.2, "cpu")),
    ("tied_conv_transpose2d", lambda u, w, b: (u, w[0, :-1], None, "cpu")),
    ("recursive_embedding", lambda u, w, b: (u, w, b[:-1], 2, 0.2, False, True, "cpu")),
    ("lapsrn_level", lambda u, w, b: (u, w, b, 3, b[0], 2, 0.2, False, None, True, "cpu")),
    ("residual_head", lambda u, w, b: (u, u[:, :1], w[0, :1], b[0, :1], w[0, :1, :1], "cpu")),
    ("conv2d_lrelu_backward", lambda u, w, b: (u[..., :-1], u, None, u, w[0], b[0], None, 0.2, [1, 1, 1, 0], "cpu")),
    ("conv2d_lrelu_backward", lambda u, w, b: (u, u[:, :-1], None, u, w[0], b[0], None, 0.2, [1, 1, 1, 0], "cpu")),
    (
        "recursive_embedding_backward",
        lambda u, w, b: (u, u, u.new_empty(1), u, w, b, 2, 0.2, False, [True] * 3, "cpu"),
    ),
]


@pytest.mark.parametrize(("operator", "make"), BAD)
def test_operators_check_what_they_are_given(operator, make, arguments):
    inputs = [[bool(x) for x in value] if isinstance(value, list) else value for value in make(*arguments)]
    with pytest.raises(ops.ArgumentError, match="must"):
        getattr(torch.ops.cmslap, operator)(*inputs)


@pytest.mark.skipif(extension.MISSING is not None, reason=str(extension.MISSING))
@pytest.mark.parametrize("compiled", [False, True])
def test_operators_and_compiled_graphs_refuse_forward_mode(compiled):
    """PyTorch would silently say zero."""
    x, weight = torch.rand(1, 2, 4, 5), torch.rand(3, 2, 3, 3)
    function = functools.partial(torch.ops.cmslap.conv2d_lrelu, bias=None, skip=None, negative_slope=0.2, backend="cpu")
    if compiled:
        function = torch.compile(ops.conv2d_lrelu, fullgraph=True, backend="aot_eager")
    value = function(x, weight)
    with pytest.raises(BackendError, match="no forward-mode derivative"), forward_ad.dual_level():
        function(forward_ad.make_dual(x, torch.ones_like(x)), weight)
    with pytest.raises(RuntimeError, match="torch.func.jvp" if compiled else "no forward-mode derivative"):
        torch.func.jvp(lambda x: function(x, weight), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(function(x, weight), value)
