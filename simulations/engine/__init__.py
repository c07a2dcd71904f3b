"""Flower grids that run client apps here: in this process or on Ray actors."""

from simulations.engine.grid import SimulationGrid, identify

__all__ = ["SimulationGrid", "identify"]
