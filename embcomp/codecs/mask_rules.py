"""The rules by which the mask of a table is learned: what they do to its values while they search, and their order."""

import abc
from typing import Any

import torch
from torch import Tensor, nn

from embcomp.constants import Maps


def home_of(device: Any) -> torch.device:
    """Return the device of masks and groups for rows on a device; on the meta device these stay real, on the CPU."""
    home = torch.empty(0, device=device).device
    return torch.device("cpu") if home.type == "meta" else home


class MaskRule(Maps, abc.ABC):
    """A rule that searches which entries of a table to keep.

    Args:
        rows: the number of rows.
        dim: the width of a row.
        settings: the settings of the coding.
        device: the device of its parameters.
        dtype: the dtype of its parameters.
    """

    def __init__(self, rows: int, dim: int, settings: Any, device: Any = None, dtype: torch.dtype | None = None):
        super().__init__()
        self.settings = settings

    @staticmethod
    def learned(rows: int, dim: int, settings: Any) -> int:
        """Return the number of values that the rule learns."""
        return 0

    def reset_parameters(self) -> None:
        """Set the parameters to their initial values."""

    @abc.abstractmethod
    def forward(self, values: Tensor, rows: Tensor) -> Tensor:
        """Return the vectors while the mask is searched, for values [..., dim] of rows int64 [...]."""

    @abc.abstractmethod
    def scores(self, values: Tensor) -> Tensor:
        """Return the order of the entries of a whole table [rows, dim]: those of the largest scores are kept."""

    def penalty(self) -> Tensor | None:
        """Return what the rule adds to the loss, a scalar; None if nothing."""
        return None


class Magnitude(MaskRule):
    """The rule of the largest entries; the schedule sets more and more of the others to zero."""

    def forward(self, values: Tensor, rows: Tensor) -> Tensor:
        return values

    def scores(self, values: Tensor) -> Tensor:
        return values.abs()


class Threshold(MaskRule):
    """The rule of learned soft thresholds: sign(v) relu(|v| - sigmoid(s)), with gradients for v and s.

    Attributes:
        s: the thresholds before the sigmoid, [1, 1], [rows, 1] or [1, dim].
    """

    def __init__(self, rows: int, dim: int, settings: Any, device: Any = None, dtype: torch.dtype | None = None):
        super().__init__(rows, dim, settings)
        shape = {"table": (1, 1), "row": (rows, 1), "dimension": (1, dim)}[settings.per]
        self.s = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.reset_parameters()

    @staticmethod
    def learned(rows: int, dim: int, settings: Any) -> int:
        return {"table": 1, "row": rows, "dimension": dim}[settings.per]

    def reset_parameters(self) -> None:
        nn.init.constant_(self.s, self.settings.start)

    def forward(self, values: Tensor, rows: Tensor) -> Tensor:
        thresholds = torch.sigmoid(self.s[rows] if self.settings.per == "row" else self.s.squeeze(0))
        return values.sign() * torch.relu(values.abs() - thresholds)

    def scores(self, values: Tensor) -> Tensor:
        return values.abs() - torch.sigmoid(self.s)


class Gates(MaskRule):
    """The rule of learned gates in [0, 1] for each frequency group and column, with an L1 penalty.

    Attributes:
        gates: the gates, [groups, dim].
        group: the group of each row, uint8 [rows].
    """

    group: Tensor

    def __init__(self, rows: int, dim: int, settings: Any, device: Any = None, dtype: torch.dtype | None = None):
        super().__init__(rows, dim, settings)
        self.gates = nn.Parameter(torch.ones(settings.groups, dim, device=device, dtype=dtype))
        self.register_buffer("group", settings.group.to(home_of(device), copy=True))

    @staticmethod
    def learned(rows: int, dim: int, settings: Any) -> int:
        return settings.groups * dim

    def reset_parameters(self) -> None:
        nn.init.ones_(self.gates)

    def forward(self, values: Tensor, rows: Tensor) -> Tensor:
        return values * self.gates[self.group[rows].long()]

    def scores(self, values: Tensor) -> Tensor:
        """Return the gates, with the sizes of entries to order those under equal gates."""
        sizes = values.abs().double()
        return self.gates.double()[self.group.long()] + 1e-9 * sizes / sizes.amax().clamp(min=1e-30)

    def penalty(self) -> Tensor:
        return self.settings.strength * self.gates.abs().sum()


class RowNorm(MaskRule):
    """The rule of rows whose norm exceeds a learned threshold: v [ |v|_1 > t ], with the penalty exp(-t).

    Attributes:
        t: the threshold, [1, 1].
    """

    def __init__(self, rows: int, dim: int, settings: Any, device: Any = None, dtype: torch.dtype | None = None):
        super().__init__(rows, dim, settings)
        self.t = nn.Parameter(torch.zeros(1, 1, device=device, dtype=dtype))

    @staticmethod
    def learned(rows: int, dim: int, settings: Any) -> int:
        return 1

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.t)

    def forward(self, values: Tensor, rows: Tensor) -> Tensor:
        return values * step_of(values.abs().sum(-1, keepdim=True) - self.t.squeeze(0))

    def scores(self, values: Tensor) -> Tensor:
        return values.abs().sum(1, keepdim=True).expand_as(values)

    def penalty(self) -> Tensor:
        return self.settings.strength * (-self.t).exp().sum()


def step_of(x: Tensor) -> Tensor:
    """Return the unit step, 1 where x > 0, with the long-tailed estimate of its gradient.

    The estimate is 2 - 4 |x| up to |x| = 0.4, 0.4 up to |x| = 1, and 0 beyond (Lyu et al. 2022, equation 8).

    Example:
        >>> import torch
        >>> x = torch.tensor([-2.0, -0.5, 0.1], requires_grad=True)
        >>> step = step_of(x)
        >>> step.sum().backward()
        >>> step.detach(), x.grad
        (tensor([0., 0., 1.]), tensor([0.0000, 0.4000, 1.6000]))
    """
    size = x.detach().abs()
    slope = torch.where(size <= 0.4, 2 - 4 * size, 0.4 * (size <= 1).to(x.dtype))
    return (x.detach() > 0).to(x.dtype) + slope * (x - x.detach())


RULES: dict[str, type[MaskRule]] = {"threshold": Threshold, "magnitude": Magnitude, "gates": Gates, "rows": RowNorm}
