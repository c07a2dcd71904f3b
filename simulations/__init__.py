"""What a person runs: scenarios, comparisons and the engine under them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simulations.comparison import Comparison
    from simulations.config import load_scenario
    from simulations.departure import compare
    from simulations.scenario import Scenario

__all__ = ["Comparison", "Scenario", "compare", "load_scenario"]

_HOMES = {
    "Comparison": "simulations.comparison",
    "compare": "simulations.departure",
    "Scenario": "simulations.scenario",
    "load_scenario": "simulations.config",
}


def __getattr__(name: str) -> object:
    """Import on first use, so that ``fedunlearn --help`` does not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'simulations' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
