"""What only a GPU can show of the Triton backend: half precision at full depth, memory, graphs, large maps."""

import pytest
import torch

import cmslap
from cmslap import ops
from cmslap.kernels import operations

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


@pytest.fixture(autouse=True)
def any_algorithm(poisoned):
    """cuDNN's side of the comparisons is free to choose; poisoned memory would only slow these sizes down."""
    torch.use_deterministic_algorithms(False)


def network(recompute=False):
    model = cmslap.CMSLapSRN(scale=8, depth=5, recursions=8).to("cuda", memory_format=torch.channels_last)
    model.recompute = recompute
    return model


def pictures(count, size):
    """Smooth random luma [N, 1, size, size] and its eighth."""
    coarse = torch.rand(count, 1, size // 16, size // 16, device="cuda")
    full = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
    return full, torch.nn.functional.avg_pool2d(full, 8)


def loss_of(model, full, small):
    """Charbonnier loss of every level."""
    loss = 0.0
    for image in model(small):
        target = torch.nn.functional.interpolate(full, size=image.shape[-2:], mode="area")
        loss = loss + ((image.float() - target).square() + 1e-6).sqrt().mean()
    return loss


def gradients(model, full, small, backend, dtype):
    model.zero_grad()
    enabled = dtype != torch.float32
    with ops.use_backend(backend), torch.autocast("cuda", dtype, enabled=enabled):
        loss = loss_of(model, full, small)
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).double()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_step_gradient_of_the_full_depth(dtype):
    model, (full, small) = network(), pictures(4, 128)
    with torch.backends.cudnn.flags(allow_tf32=False):
        exact = gradients(model, full, small, "reference", torch.float32)
    value = gradients(model, full, small, "triton", dtype)
    assert torch.nn.functional.cosine_similarity(value, exact, dim=0) > 0.999


def test_training_curve():
    """300 steps end where eager's bfloat16 steps end, from the same start on the same data."""
    ends = []
    start = network().state_dict()
    for backend in ("reference", "triton"):
        model = network()
        model.load_state_dict(start)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
        generator_state = torch.cuda.get_rng_state()
        losses = []
        for _ in range(300):
            full, small = pictures(4, 128)
            optimizer.zero_grad()
            with ops.use_backend(backend), torch.autocast("cuda", torch.bfloat16):
                loss = loss_of(model, full, small)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        torch.cuda.set_rng_state(generator_state)  # the next backend sees the same pictures
        losses = torch.stack(losses).cpu()
        assert losses[-50:].mean() < losses[:50].mean()
        ends.append(losses[-50:].mean())
    assert abs(ends[1] / ends[0] - 1) < 0.05


@pytest.mark.parametrize(("recompute", "share"), [(False, 0.55), (True, 0.3)])
def test_peak_memory(recompute, share):
    full, small = pictures(4, 512)
    peaks = []
    for backend, model in (("reference", network()), ("triton", network(recompute))):
        gradients(model, full, small, backend, torch.bfloat16)  # tunes, and allocates the gradients
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        gradients(model, full, small, backend, torch.bfloat16)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] < share * peaks[0]


def test_cuda_graph():
    model, (full, small) = network(), pictures(1, 128)
    expected = gradients(model, full, small, "triton", torch.bfloat16)  # tunes

    def step():
        with ops.use_backend("triton"), torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            loss = loss_of(model, full, small)
        loss.backward()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    model.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    graph.replay()
    torch.cuda.synchronize()
    value = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).double()
    assert torch.nn.functional.cosine_similarity(value, expected, dim=0) > 0.9999


@pytest.mark.parametrize("channels", [64, 256])
def test_tf32(channels):
    x = torch.randn(2, channels, 37, 53, device="cuda")
    weight = torch.randn(channels, channels, 3, 3, device="cuda") / (3 * channels**0.5)
    with torch.backends.cudnn.flags(allow_tf32=True):
        value = operations.conv2d_lrelu(x, weight, None, None, 1.0)
        up = operations.tied_conv_transpose2d(x, weight, None)
    expected = torch.nn.functional.conv2d(x.double(), weight.double(), padding=1)
    assert (value - expected).norm() < 1e-3 * expected.norm()
    expected = torch.nn.functional.conv_transpose2d(x.double(), weight.double(), stride=2)[..., :-1, :-1]
    assert (up - expected).norm() < 1e-3 * expected.norm()


def test_more_elements_than_an_int32_counts():
    height, width = 6000, 6000
    if torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip("needs 40 GiB of free memory")
    x = torch.randn(1, 64, height, width, dtype=torch.bfloat16, device="cuda")
    x = x.to(memory_format=torch.channels_last)
    weight = (torch.randn(64, 64, 3, 3, device="cuda") / 24).bfloat16()
    value = operations.conv2d_lrelu(x, weight, None, None, 0.2)[..., -9:, -9:]
    edge = torch.nn.functional.conv2d(x[..., -10:, -10:].double(), weight.double(), padding=1)[..., 1:, 1:]
    expected = torch.nn.functional.leaky_relu(edge, 0.2)
    assert (value - expected).norm() < 1e-2 * expected.norm()
