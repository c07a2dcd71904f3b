"""What a person runs: scenarios, comparisons and the engine under them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simulations.compare import Comparison, compare
    from simulations.config import Scenario, load_scenario

__all__ = ["Comparison", "Scenario", "compare", "load_scenario"]

_HOMES = {
    "Comparison": "simulations.compare",
    "compare": "simulations.compare",
    "Scenario": "simulations.config",
    "load_scenario": "simulations.config",
}


def __getattr__(name: str) -> object:
    """Import on first use, so that ``fedunlearn --help`` does not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'simulations' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
