"""GPTQ: weights become integers so that products with calibration inputs change least.

https://arxiv.org/abs/2210.17323, whose symbols this file uses. Pure: tensors in, tensors out.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 128  # input channels that are quantised between two large products


def hessian(x: Tensor) -> Tensor:
    """H, the mean over all tokens of x xᵀ: [n, tokens, in] to [in, in], in double precision."""
    rows = x.flatten(0, 1)
    return (rows.T @ rows).double() / len(rows)


@dataclass(frozen=True)
class Factor:
    """What GPTQ needs of H: an order of its input channels, and U with H⁻¹ = Uᵀ U in that order."""

    order: Tensor  # [in], the channels with the largest inputs first (`act_order`)
    hinv: Tensor  # U, [in, in], upper triangular, in double precision


def factorise(hessian: Tensor, percdamp: float) -> Factor:
    """`percdamp` is added to H's diagonal, relative to its mean."""
    order = hessian.diagonal().argsort(descending=True, stable=True)
    h = hessian[order][:, order]
    h.diagonal().add_(percdamp * h.diagonal().mean() + 1e-30)
    return Factor(order, inverse_cholesky(h))


def inverse_cholesky(h: Tensor) -> Tensor:
    """The upper triangular U with H⁻¹ = Uᵀ U, from a Cholesky factor of H itself."""
    root = torch.linalg.cholesky(h.flip(0, 1)).flip(0, 1)
    identity = torch.eye(len(root)).double()
    result: Tensor = torch.linalg.solve_triangular(root, identity, upper=True)
    return result


def gptq(weight: Tensor, factor: Factor) -> Tensor:
    """Integers from -127 to 127 for `weight` [in, out], whose unit is one quantisation step.

    Input channels are quantised one after another; each error is compensated by the channels that
    follow.
    """
    hinv = factor.hinv.float()
    w = weight[factor.order]
    for start in range(0, len(w), BLOCK):
        block = slice(start, start + BLOCK)
        errors = torch.empty_like(w[block])
        with one_thread():
            for i, row in enumerate(hinv[block, block]):
                q = w[start + i].round().clamp(-127, 127)
                errors[i] = (w[start + i] - q) / row[i]
                w[block][i + 1 :].addr_(row[i + 1 :], errors[i], alpha=-1)
                w[start + i] = q
        w[start + BLOCK :].addmm_(hinv[block, start + BLOCK :].T, errors, alpha=-1)
    integers = torch.empty_like(weight)
    integers[factor.order] = w
    return integers


@contextmanager
def one_thread() -> Iterator[None]:
    """For many small operations, in which threads would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
