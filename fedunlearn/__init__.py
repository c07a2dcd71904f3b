"""Core of fedunlearn: knows no method and no scenario."""

__version__ = "0.1.0"
