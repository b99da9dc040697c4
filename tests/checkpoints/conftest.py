"""Small networks of every kind, random, biases included."""

import pytest
import torch

from cmslap import CMSLapSRN, LapSRN, MSLapSRN


@pytest.fixture(params=["cms", "ms", "lapsrn"])
def network(request):
    makers = {
        "cms": lambda: CMSLapSRN(scale=4, depth=3, recursions=2, channels=6, shared_conv=2),
        "ms": lambda: MSLapSRN(scale=4, depth=2, recursions=3, channels=5),
        "lapsrn": lambda: LapSRN(scale=4, depth=2, channels=4),
    }
    model = makers[request.param]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


@pytest.fixture
def same():
    """Whether two networks are of one kind and compute the same thing."""

    def check(a, b):
        y = torch.rand(1, 1, 7, 9)
        return type(a) is type(b) and all(torch.equal(x, z) for x, z in zip(a(y, 4), b(y, 4), strict=True))

    return check
