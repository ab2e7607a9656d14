"""Adam and its kin: one second moment for a row, and the trust ratio of LAMB.

Each row counts its steps ("row_counter"), and the bias of its moments is corrected by this count, so that a row which
is first read late moves as one that is read early. FBGEMM has this as an option for Adam; for the others it counts the
steps of the table.
"""

import torch
from torch import Tensor

from embcomp.ops.optimizers.base import FusedOptimizerSettings, Per, Rule


class Adam(Rule):
    """w -= lr * m / (sqrt(v) + eps), m and v the moments without bias (Kingma and Ba 2015, algorithm 1).

    With `decoupled` it is AdamW (Loshchilov and Hutter 2019).
    """

    name, number, constants = "adam", 3, ("betas", "eps")
    rowwise, trusts = False, False

    def states(self, settings: FusedOptimizerSettings) -> dict[str, Per]:
        return {"exp_avg": "value", "exp_avg_sq": "row" if self.rowwise else "value", "row_counter": "row"}

    def step(self, rows: Tensor, gradient: Tensor, states: dict[str, Tensor], settings: FusedOptimizerSettings) -> None:
        beta1, beta2 = settings.betas
        counts = states["row_counter"].add_(1).double()
        square = gradient.square()
        first = states["exp_avg"].lerp_(gradient, 1 - beta1)
        second = states["exp_avg_sq"].mul_(beta2).add_(square.mean(1) if self.rowwise else square, alpha=1 - beta2)
        bias1, bias2 = (-torch.expm1(counts * torch.tensor(beta).double().log()) for beta in (beta1, beta2))
        root = (second / bias2 if self.rowwise else second / bias2.unsqueeze(1)).sqrt().float() + settings.eps
        move = (first / bias1.unsqueeze(1)).float() / (root.unsqueeze(1) if self.rowwise else root)
        move += self.decay_beside(settings) * rows
        if self.trusts:
            of_rows, of_moves = rows.norm(dim=1, keepdim=True), move.norm(dim=1, keepdim=True)
            move *= torch.where((of_rows > 0) & (of_moves > 0), of_rows / of_moves, 1.0)
        rows -= settings.lr * move

    def moves_alone(self, settings: FusedOptimizerSettings) -> bool:
        return True


class PartialRowWiseAdam(Adam):
    """Adam whose second moment is the mean square of a row, as FBGEMM's PARTIAL_ROWWISE_ADAM."""

    name, number = "partial_rowwise_adam", 4
    rowwise, decays_beside = True, True


class LAMB(Adam):
    """Adam with a step as long as the row, times lr (You et al. 2020, algorithm 2, a row as a layer, phi(z) = z)."""

    name, number = "lamb", 5
    trusts, decays_beside = True, True


class PartialRowWiseLAMB(Adam):
    """LAMB whose second moment is the mean square of a row, as FBGEMM's PARTIAL_ROWWISE_LAMB."""

    name, number = "partial_rowwise_lamb", 6
    rowwise, trusts, decays_beside = True, True, True
