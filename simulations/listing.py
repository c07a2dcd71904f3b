"""The methods as a list, read off their classes."""

import inspect
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from strategies import METHODS


def method_rows() -> list[dict[str, Any]]:
    """Return one entry a method: what is said about it, needs, settings, summary."""
    return [_row(name, cls) for name, cls in METHODS.items()]


def _row(name: str, cls: type[Any]) -> dict[str, Any]:
    method = cls()
    settings = fields(cls) if is_dataclass(cls) else ()
    return {
        "name": name,
        **asdict(cls.about),
        "levels": list(method.requires.levels),
        "requires": asdict(method.requires),
        "needs": str(method.requires),
        "settings": ", ".join(f"{f.name}={getattr(method, f.name)}" for f in settings),
        "summary": (inspect.getdoc(cls) or "").splitlines()[0].replace("``", ""),
    }
