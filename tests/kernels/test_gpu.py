"""What only a GPU can show of a backend: full depth, training, memory, graphs, streams, several devices, large maps."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cosine_similarity

import cmslap
from cmslap import ops
from cmslap.ops import cuda
from cmslap.ops.operation import OPERATIONS
from cmslap.ops.triton_backend import TRITON

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


@pytest.fixture(params=[cuda.CUDA, TRITON], ids=lambda backend: backend.name)
def backend(request):
    if request.param.missing is not None:
        pytest.skip(request.param.missing)
    return request.param


@pytest.fixture
def any_algorithm(poisoned):
    """cuDNN's side of a comparison is free to choose; poisoned memory would only slow these sizes down."""
    torch.use_deterministic_algorithms(False)


def network(recompute=False, **size):
    model = cmslap.CMSLapSRN(**{"scale": 8, "depth": 5, "recursions": 8} | size)
    model.recompute = recompute
    return model.to("cuda", memory_format=torch.channels_last)


def images(count, size):
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


def gradients(model, full, small, name, dtype=torch.bfloat16):
    """Of every parameter, by the backend ``name``."""
    model.zero_grad()
    with ops.use_backend(name), torch.autocast("cuda", dtype, enabled=dtype != torch.float32, cache_enabled=False):
        loss = loss_of(model, full, small)
    loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors]).double()


@pytest.mark.usefixtures("any_algorithm")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_step_gradient_of_the_full_depth(backend, dtype):
    if backend is cuda.CUDA and dtype == torch.float32:
        pytest.skip("no kernels of this type")
    model, (full, small) = network(), images(4, 128)
    with torch.backends.cudnn.flags(allow_tf32=False):
        exact = gradients(model, full, small, "reference", torch.float32)
        values = gradients(model, full, small, backend.name, dtype)
    for (name, _), value, expected in zip(model.named_parameters(), values, exact, strict=True):
        assert cosine_similarity(value.double().flatten(), expected.double().flatten(), dim=0) > 0.999, name


@pytest.mark.usefixtures("any_algorithm")
def test_training_curve(backend):
    """300 steps end where eager's bfloat16 steps end, from the same start on the same data."""
    ends = []
    start = network().state_dict()
    generator_state = torch.cuda.get_rng_state()
    for name in ("reference", backend.name):
        torch.cuda.set_rng_state(generator_state)  # each sees the same images
        model = network()
        model.load_state_dict(start)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
        losses = []
        for _ in range(300):
            full, small = images(4, 128)
            optimizer.zero_grad()
            with ops.use_backend(name), torch.autocast("cuda", torch.bfloat16):
                loss = loss_of(model, full, small)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        losses = torch.stack(losses).cpu()
        assert losses[-50:].mean() < losses[:50].mean()
        ends.append(losses[-50:].mean())
    assert abs(ends[1] / ends[0] - 1) < 0.05


def test_gradients_are_the_same_bits_every_time(backend):
    model, (full, small) = network(), images(2, 128)
    first = gradients(model, full, small, backend.name)
    for _ in range(9):
        again = gradients(model, full, small, backend.name)
        assert all(torch.equal(*pair) for pair in zip(again, first, strict=True))


@pytest.mark.usefixtures("any_algorithm")
@pytest.mark.parametrize(("recompute", "share"), [(False, 0.55), (True, 0.3)])
def test_peak_memory(backend, recompute, share):
    full, small = images(4, 512)
    peaks = []
    for name, model in (("reference", network()), (backend.name, network(recompute))):
        gradients(model, full, small, name)  # compiles and tunes, and allocates the gradients
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        gradients(model, full, small, name)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] < share * peaks[0]


def captured(call):
    """``call`` in a CUDA graph, after a run that compiles and tunes; returns the graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


@pytest.mark.usefixtures("any_algorithm")
def test_training_step_in_a_cuda_graph(backend):
    model, (full, small) = network(), images(1, 128)
    expected = gradients(model, full, small, backend.name)

    def step():
        model.zero_grad(set_to_none=True)
        with ops.use_backend(backend.name), torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            loss = loss_of(model, full, small)
        loss.backward()

    graph = captured(step)
    for parameter in model.parameters():
        parameter.grad.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert cosine_similarity(flat(p.grad for p in model.parameters()), flat(expected), dim=0) > 0.9999


@pytest.mark.usefixtures("any_algorithm")
def test_inference_in_a_cuda_graph(backend):
    """A graph of one image, replayed for another."""
    model = network(recursions=2)
    first, second = (torch.rand(1, 1, 40, 56, device="cuda") for _ in range(2))
    still, images = first.clone(), []

    def enlarge():
        images[:] = model(still)

    with torch.no_grad(), ops.use_backend(backend.name), torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
        expected = [image.clone() for image in model(second)]
        graph = captured(enlarge)
        still.copy_(second)
        graph.replay()
    assert all(torch.equal(*pair) for pair in zip(images, expected, strict=True))


@pytest.mark.usefixtures("any_algorithm")
def test_two_streams_at_once(backend):
    """Each stream's results are those it has alone, however the two overlap."""
    models = [network(recursions=2) for _ in range(2)]
    inputs = [images(2, 256) for _ in range(2)]
    expected = [gradients(model, *pair, backend.name) for model, pair in zip(models, inputs, strict=True)]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(2)]
    for _ in range(5):
        results = []
        for stream, model, pair in zip(streams, models, inputs, strict=True):
            with torch.cuda.stream(stream):
                results.append(gradients(model, *pair, backend.name))
        torch.cuda.synchronize()
        for result, alone in zip(results, expected, strict=True):
            assert all(torch.equal(*pair) for pair in zip(result, alone, strict=True))


@pytest.mark.usefixtures("any_algorithm")
def test_a_compiled_step(backend):
    """torch.compile sees the operators, not what is in them, and chooses the backend while it traces."""
    torch._dynamo.reset()
    model, (full, small) = network(recursions=2, scale=4), images(2, 64)
    expected = gradients(model, full, small, backend.name)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    values = gradients(compiled, full, small, backend.name)
    assert cosine_similarity(flat(values), flat(expected), dim=0) > 0.9999


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
def test_the_tensors_device_counts_not_the_current_one(backend):
    call = [torch.randn(2, 64, 9, 9).bfloat16(), torch.randn(64, 64, 3, 3).bfloat16() / 24]
    with ops.use_backend(backend.name), torch.cuda.device(0):
        values = [ops.conv2d_lrelu(*(tensor.to(f"cuda:{index}") for tensor in call)) for index in (0, 1)]
    assert torch.equal(values[0].cpu(), values[1].cpu())


DISTRIBUTED = """
import sys, torch, cmslap
from cmslap import ops
rank, address, name = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.cuda.set_device(rank)
torch.distributed.init_process_group("nccl", init_method=address, rank=rank, world_size=2)
torch.manual_seed(0)
model = cmslap.CMSLapSRN(scale=4, recursions=2).to("cuda", memory_format=torch.channels_last)
y = torch.rand(4, 1, 24, 24, device="cuda")
def backward(model, y):
    with ops.use_backend(name), torch.autocast("cuda", torch.bfloat16):
        loss = sum(image.float().square().mean() for image in model(y))
    loss.backward()
backward(model, y)
alone = torch.cat([p.grad.flatten() for p in model.parameters()]).double()
model.zero_grad()
backward(torch.nn.parallel.DistributedDataParallel(model, device_ids=[rank]), y[2 * rank : 2 * rank + 2])
together = torch.cat([p.grad.flatten() for p in model.parameters()]).double()
assert torch.nn.functional.cosine_similarity(together, alone, dim=0) > 0.9999
torch.distributed.destroy_process_group()
"""


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
def test_two_processes_give_the_gradient_of_one(backend, tmp_path):
    command = [sys.executable, "-c", DISTRIBUTED]
    address = f"file://{tmp_path}/meeting"
    workers = [subprocess.Popen([*command, str(rank), address, backend.name]) for rank in (0, 1)]
    assert [worker.wait(120) for worker in workers] == [0, 0]


@pytest.mark.usefixtures("any_algorithm")
@pytest.mark.parametrize("channels", [16, 48, 64, 128, 256])
def test_random_shapes(backend, channels):
    """Sizes at which maps are cut into several tiles and shares, against float64."""
    for _ in range(5):
        n, h, w, depth = random.randint(1, 3), random.randint(1, 70), random.randint(1, 150), random.randint(1, 3)
        shapes = {"u": (n, channels, h, w), "weights": (depth, channels, channels, 3, 3), "biases": (depth, channels)}
        tensors = {name: torch.randn(*shape, device="cuda") for name, shape in shapes.items()}
        tensors["weights"] *= (2 / (9 * channels)) ** 0.5
        tensors["upsample_bias"] = torch.randn(channels, device="cuda")
        half = {name: tensor.bfloat16() for name, tensor in tensors.items()}
        half["u"] = half["u"].contiguous(memory_format=torch.channels_last)
        options = {"recursions": random.randint(1, 3), "negative_slope": 1.0, "shared_conv": random.randint(1, depth)}

        def run(name, tensors, options=options):
            leaves = {key: tensor.detach().requires_grad_() for key, tensor in tensors.items()}
            with ops.use_backend(name):
                f = ops.lapsrn_level(**leaves, **options)
            torch.manual_seed(0)
            f.backward(torch.randn(f.shape, device="cuda").to(f.dtype))
            return [f.detach(), *(leaf.grad for leaf in leaves.values())]

        expected = run("reference", {key: tensor.double() for key, tensor in half.items()})
        for value, exact in zip(run(backend.name, half), expected, strict=True):
            assert (value.double() - exact).norm() < 5e-2 * exact.norm(), (shapes, options)


@pytest.mark.usefixtures("any_algorithm")
@pytest.mark.parametrize("channels", [64, 256])
def test_tf32_by_triton(channels):
    call = {"device": "cuda"}
    x, weight = torch.randn(2, channels, 37, 53, **call), torch.randn(channels, channels, 3, 3, **call)
    weight /= 3 * channels**0.5
    with torch.backends.cudnn.flags(allow_tf32=True), ops.use_backend("triton"):
        value = ops.conv2d_lrelu(x, weight, negative_slope=1.0)
        up = ops.tied_conv_transpose2d(x, weight)
    for name, result in (("conv2d_lrelu", value), ("tied_conv_transpose2d", up)):
        options = {"negative_slope": 1.0} if name == "conv2d_lrelu" else {}
        expected = OPERATIONS[name].reference(x.double(), weight.double(), **options)
        assert (result - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.usefixtures("any_algorithm")
def test_more_elements_than_an_int32_counts(backend):
    """A map of 2.3 thousand million elements, and its gradient: all of them are right."""
    if torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip("needs 40 GiB of free memory")
    x = torch.randn(1, 6000, 6000, 64, dtype=torch.bfloat16, device="cuda").permute(0, 3, 1, 2).requires_grad_()
    weight = (torch.randn(64, 64, 3, 3, device="cuda") / 24).bfloat16()
    with ops.use_backend(backend.name):
        value = ops.conv2d_lrelu(x, weight)
        value.backward(value.detach())
    check_bands(x, weight, value, rows=250)


def check_bands(x, weight, value, rows):
    """Compares conv2d_lrelu and its data gradient, of the value itself, with the reference, so many rows at a time."""
    for top in range(0, x.shape[2], rows):
        first = max(top - 4, 0)  # what is cut off is wrong in two rows
        band = x.detach()[:, :, first : top + rows + 4].double().requires_grad_()
        expected = OPERATIONS["conv2d_lrelu"].reference(band, weight.double())
        expected.backward(expected.detach())
        for result, exact in ((value, expected), (x.grad, band.grad)):
            result = result.detach()[:, :, top : top + rows].double()
            exact = exact.detach()[:, :, top - first :][:, :, : result.shape[2]]
            assert (result - exact).norm() < 1e-2 * exact.norm()


def test_the_sm80_kernels_on_hopper():
    """Devices with kernels of their own run those for older ones, too: the operations' tests once more, with these."""
    if cuda.CUDA.missing is not None:
        pytest.skip(cuda.CUDA.missing)
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("the other kernels are this device's own")
    environment = os.environ | {"CMSLAP_CUDA_KERNELS": "sm80"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "cuda",
        "-k",
        "not triton",
        "-p",
        "no:cacheprovider",
    ]
    tests = [str(Path(__file__).with_name(name)) for name in ("test_every_operation.py", "test_backend.py")]
    run = subprocess.run([*command, *tests], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
