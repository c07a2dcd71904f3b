"""The compiled kernel's libraries: which were built, which run here.

They hold no Python module; ``ctypes`` calls them and lets other threads run meanwhile.
"""

import ctypes
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import ClassVar

INSTRUCTIONS = ("avx512", "avx2", "generic")
"""Instruction sets, the fastest first."""

MOST_LAYERS = 32
"""Convolutions, and linear layers, that a model may have."""

DONE = -1
NO_MEMORY = -2


class Order(ctypes.Structure):
    """``Order`` of ``train.hpp``; addresses are plain integers."""

    _fields_: ClassVar = [
        ("clients", ctypes.c_int64),
        ("x", ctypes.c_int64),
        ("y", ctypes.c_int64),
        ("examples", ctypes.c_int64),
        ("start", ctypes.c_int64),
        ("mu", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("bounds", ctypes.c_int64),
        ("first", ctypes.c_int64),
        ("lr", ctypes.c_double),
        ("momentum", ctypes.c_double),
        ("decay", ctypes.c_double),
        ("out", ctypes.c_int64),
        ("out_stride", ctypes.c_int64),
        ("losses", ctypes.c_int64),
    ]


@cache
def library(instructions: str) -> ctypes.CDLL | None:
    """Return the library for an instruction set, or None if it was not built."""
    folder = Path(__file__).parent
    for suffix in EXTENSION_SUFFIXES:
        path = folder / f"_{instructions}{suffix}"
        if path.exists():
            return ctypes.CDLL(str(path))
    return None


@cache
def usable() -> tuple[str, ...]:
    """Return the instruction sets that were built and run here, the fastest first."""
    generic = library("generic")
    if generic is None:
        return ()
    return tuple(name for name in INSTRUCTIONS if _runs(generic, name))


def _runs(generic: ctypes.CDLL, name: str) -> bool:
    if name == "generic":
        return True
    return bool(generic[f"runs_{name}"]()) and library(name) is not None
