"""The version of raycnn, known also where it runs from a folder without being installed."""

from importlib.metadata import version

__version__ = "0.1.0"


def versions() -> dict[str, str]:
    """Of raycnn and of what decides its numbers."""
    return {"raycnn": __version__, **{name: version(name) for name in ("torch", "torchvision", "ray")}}
