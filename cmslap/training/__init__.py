"""Training: from a TOML file and folders of images to weights with their training record."""

from pathlib import Path

SHIPPED = Path(__file__).parent / "configs"


def shipped() -> list[str]:
    """Names of the configurations that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))
