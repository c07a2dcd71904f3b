"""Builds the compiled kernel where there is a C++ compiler; all else is in pyproject.

Each instruction set is a library of its own from the same source, and each is optional:
without a compiler, or with one that does not know the set, the package installs without
it. Which one is used is decided at run time.
"""

import platform
from pathlib import Path

from setuptools import Extension, setup

NATIVE = Path("simulations/engine/kernels/native")
COMMON = [
    "-O3",
    "-g0",
    "-std=c++17",
    "-Wall",
    "-Wextra",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",  # but no -ffast-math: NaN stays NaN
    "-fno-exceptions",
    "-fno-rtti",
    "-fvisibility=hidden",
]
X86 = {
    "avx512": [
        "-mavx512f",
        "-mavx512vl",
        "-mavx512dq",
        "-mavx512bw",
        "-mfma",
        "-mprefer-vector-width=512",
    ],
    "avx2": ["-mavx2", "-mfma"],
}
BUILDS = {"generic": list[str]()}
if platform.machine() in ("x86_64", "AMD64"):
    BUILDS |= X86

setup(
    ext_modules=[
        Extension(
            f"simulations.engine.kernels.native._{name}",
            sources=[str(NATIVE / f"{name}.cpp")],
            depends=[str(header) for header in sorted(NATIVE.glob("*.hpp"))],
            extra_compile_args=COMMON + flags,
            language="c++",
            optional=True,
        )
        for name, flags in BUILDS.items()
    ]
)
