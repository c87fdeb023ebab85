"""GPTQ: weights become integers so that products with calibration inputs change least.

https://arxiv.org/abs/2210.17323, whose symbols this file uses; and the same with a price on the
length of the code, for weights that compress. Pure: tensors in, tensors out.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 128  # input channels that are quantised between two large products

# A row of weights, in quantisation steps, to integers; the first argument is its input channel.
Round = Callable[[int, Tensor], Tensor]


def hessian(x: Tensor) -> Tensor:
    """H, the mean over all tokens of x xᵀ: [n, tokens, in] to [in, in], in double precision."""
    rows = x.flatten(0, 1)
    return (rows.T @ rows).double() / len(rows)


@dataclass(frozen=True)
class Factor:
    """What GPTQ needs of H: an order of its input channels, and U with H⁻¹ = Uᵀ U in that order."""

    order: Tensor  # [in], the channels with the largest inputs first (`act_order`)
    hinv: Tensor  # U, [in, in], upper triangular, in double precision

    @property
    def spread(self) -> Tensor:
        """Of each input channel, its standard deviation given those that are quantised later."""
        spread = torch.empty_like(self.hinv[0])
        spread[self.order] = 1 / self.hinv.diagonal()
        return spread


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


def nearest(_: int, row: Tensor) -> Tensor:
    """Round to the nearest integer from -127 to 127."""
    return row.round().clamp(-127, 127)


def gptq(weight: Tensor, factor: Factor, rounded: Round = nearest) -> Tensor:
    """Integers for `weight` [in, out], whose unit is one quantisation step.

    Input channels are quantised one after another; each error is compensated by the channels that
    follow.
    """
    hinv, order = factor.hinv.float(), factor.order.tolist()
    w = weight[factor.order]
    for start in range(0, len(w), BLOCK):
        block = slice(start, start + BLOCK)
        errors = torch.empty_like(w[block])
        with one_thread():
            for i, row in enumerate(hinv[block, block]):
                q = rounded(order[start + i], w[start + i])
                errors[i] = (w[start + i] - q) / row[i]
                w[block][i + 1 :].addr_(row[i + 1 :], errors[i], alpha=-1)
                w[start + i] = q
        w[start + BLOCK :].addmm_(hinv[block, start + BLOCK :].T, errors, alpha=-1)
    integers = torch.empty_like(weight)
    integers[factor.order] = w
    return integers


def thrifty(weight: Tensor, price: float) -> Round:
    """Round to the integer nearer to zero where the bits that it saves outweigh the error.

    For `weight` [in, out] in quantisation steps. The length of the code of an integer is that of a
    normal distribution, with a deviation that depends on the row and on the column. `price` 1 is
    the slope of the rate-distortion function at high rates: 2 ln 2 / 12 squared steps a bit.
    """
    square = weight.square()
    rows, columns = square.mean(1).sqrt(), square.mean(0).sqrt()
    rows = rows / square.mean().sqrt().clamp(min=1e-30)
    worth = price * 2 * math.log(2) / 12

    def rounded(channel: int, row: Tensor) -> Tensor:
        near = row.round()
        size = near.abs()
        deviation = (rows[channel] * columns).clamp(min=0.2)
        saved = ((2 * size - 1) / (2 * math.log(2) * deviation**2)).clamp(max=1.5)  # bits
        distance = row.abs() - size
        worse = (distance + 1) ** 2 - distance**2
        lower = (size > 0) & (worse < worth * saved)
        return torch.where(lower, near - near.sign(), near).clamp(-127, 127)

    return rounded


@contextmanager
def one_thread() -> Iterator[None]:
    """For many small operations, in which threads would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
