import pytest
import torch

from cmslap.compiler import backend


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()


@pytest.fixture
def inductor():
    """Asks for Inductor, whose C++ takes seconds to compile."""


@pytest.fixture(autouse=True)
def no_inductor(request, monkeypatch):
    """What is not about Inductor runs what was not fused operation by operation."""
    if "inductor" not in request.fixturenames:
        monkeypatch.setattr(backend, "_has_compiler", lambda device: False)
