"""Hessian-vector products from pairs of differences, by compact L-BFGS.

R. Byrd, J. Nocedal, R. Schnabel, "Representations of quasi-Newton matrices and their
use in limited memory methods", Mathematical Programming 63, 1994, Theorem 2.3. With the
steps ``W = [dw_1 .. dw_s]`` and gradient differences ``G = [dg_1 .. dg_s]`` as columns,
oldest first::

    A = W^T G,  D = diag(A),  L = strictly lower part of A
    s0 = dg_s . dw_s / dw_s . dw_s
    [ -D    L^T      ] p  =  [ G^T v      ]
    [  L    s0 W^T W ]       [ s0 W^T v   ]
    H~ v = s0 v - [G, s0 W] p

This is the dense BFGS recursion from ``s0 I``. It meets the secant equation of the
newest pair, not of the older ones, and is exact where the Hessian is ``c I``. If every
pair has positive curvature, ``H~`` is positive definite and the system is regular.

Pairs are scaled by the length of their step, which changes no product and keeps the
system well conditioned. Sums are in float64 and not by BLAS, so that no thread count
shows in them.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedunlearn.params import Vector, norm

Pair = tuple[Vector, Vector]
"""A step divided by its length, and the gradient difference divided by the same."""

_LEAST_COSINE = 1e-6


def pair_of(step: Vector, difference: Vector) -> Pair | None:
    """Return a pair for :func:`hessian_product`, or None if it says nothing of use.

    Args:
        step: How far apart two models are, shape ``(P,)``.
        difference: How far apart their gradients are, in the same sense, ``(P,)``.

    Returns:
        None if the models are equal, or the curvature ``step . difference`` is not
        positive by more than rounding, in which case BFGS would lose its definiteness.
    """
    length, other = norm(step), norm(difference)
    curvature = float(np.sum(np.multiply(step, difference, dtype=np.float64)))
    if not curvature > _LEAST_COSINE * length * other:
        return None
    scale = np.float64(length)  # float32 has no room for the length of a tiny step
    return (step / scale).astype(np.float32), (difference / scale).astype(np.float32)


def hessian_product(pairs: Sequence[Pair], v: Vector) -> npt.NDArray[np.float64]:
    """Return ``H~ v``, shape ``(P,)``.

    Args:
        pairs: What :func:`pair_of` returned, oldest first; at least one.
        v: Shape ``(P,)``.
    """
    W = np.stack([step for step, _ in pairs])  # noqa: N806 - the paper's letters
    G = np.stack([difference for _, difference in pairs])  # noqa: N806
    A, C = _products(W, G), _products(W, W)  # noqa: N806
    s0 = A[-1, -1] / C[-1, -1]
    L = np.tril(A, -1)  # noqa: N806
    system = np.block([[-np.diag(np.diag(A)), L.T], [L, s0 * C]])
    sides = np.concatenate([_products(G, v[None]), s0 * _products(W, v[None])])
    p = np.linalg.solve(system, sides[:, 0])
    count = len(pairs)
    correction = np.einsum("sp,s->p", G, p[:count], dtype=np.float64)
    correction += s0 * np.einsum("sp,s->p", W, p[count:], dtype=np.float64)
    product: npt.NDArray[np.float64] = s0 * v.astype(np.float64) - correction
    return product


def _products(left: Vector, right: Vector) -> npt.NDArray[np.float64]:
    """Return the inner products of the rows, in float64."""
    inner: npt.NDArray[np.float64] = np.einsum(
        "ap,bp->ab", left, right, dtype=np.float64
    )
    return inner
