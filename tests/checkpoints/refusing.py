import pytest

from cmslap import load_model
from cmslap.checkpoints.checkpoint import CheckpointError


def refused(path, *said, error=CheckpointError):
    """Load ``path`` and check that the refusal is one line that says what it should."""
    with pytest.raises(error) as caught:
        load_model(path)
    message = str(caught.value)
    assert "\n" not in message
    for part in said:
        assert part in message
