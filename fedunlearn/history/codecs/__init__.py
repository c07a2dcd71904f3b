"""How the updates of a round are stored: rows of float32 to rows of bytes and back.

=============  ==================  ================================================
name           bytes of a row      error of an entry x at most
=============  ==================  ================================================
float32        4 P                 0
float16        2 P                 ``2^-11 |x| + 2^-25``; no x beyond 65504
bfloat16       2 P                 ``2^-8 |x| + 2^-134``; no x beyond 3.39e38
int8           4 T + P             ``s/2 + 2^-22 |x| + 2^-142``, s = max|x| / 127
top_k:f        8 ceil(f P)         0 if x is kept, ``|x|`` if not
=============  ==================  ================================================

P is the number of parameters, T of tensors. Row k of the result depends on row k of the
input only, so that one client's bytes can be sealed, read or destroyed alone. Numbers
are little-endian whatever the machine.
"""

from collections.abc import Callable
from typing import Final

from fedunlearn.history.codecs.base import Bytes, Codec
from fedunlearn.history.codecs.floats import BFloat16, Float16, Float32
from fedunlearn.history.codecs.small import Int8, TopK
from fedunlearn.history.spec import named

CODECS: Final[dict[str, Callable[..., Codec]]] = {
    "float32": Float32,
    "float16": Float16,
    "bfloat16": BFloat16,
    "int8": Int8,
    "top_k": TopK,
}


def codec(name: str) -> Codec:
    """Return the codec called ``name``, such as ``int8`` or ``top_k:0.1``.

    Raises:
        UnknownNameError: If there is none.
        ConfigError: If its number is missing, superfluous or out of range.
    """
    return named("codec", name, CODECS)


__all__ = [
    "CODECS",
    "BFloat16",
    "Bytes",
    "Codec",
    "Float16",
    "Float32",
    "Int8",
    "TopK",
    "codec",
]
