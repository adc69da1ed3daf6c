"""Batch normalization that takes the residual addition and the ReLU behind it along."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsekern.ops.batch_norm import batch_norm

ACTIVATIONS = (None, "relu")


class BatchNorm2d(nn.BatchNorm2d):
    """``activation(batch_norm(input) + residual)`` in two passes; takes ``torch.nn.BatchNorm2d``'s place.

    Parameters, buffers, state_dict and results are torch's, up to rounding; float32 statistics are summed in float64.
    A bfloat16 or float16 input is rounded once, after the activation.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype: as of torch.nn.BatchNorm2d.
        activation: "relu" or None.
        **options: further arguments of torch.nn.BatchNorm2d (``bias``, from torch 2.13 on).

    Shapes: input (N, num_features, H, W), residual the same or None, output the same.

    Raises:
        ValueError: an unknown activation; in forward an input that is not 4-D, one value per channel in training, a
            number of channels other than num_features, or a residual of another shape.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
        **options: bool,
    ) -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}; expected None or 'relu'")
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, **options)
        self.activation = activation

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        self._check_input_dim(input)
        relu = self.activation == "relu"
        if residual is not None and residual.dtype != input.dtype:  # their sum has the wider of the two dtypes
            y = self._normalized(input, None, False) + residual
            return F.relu(y) if relu else y
        return self._normalized(input, residual, relu)

    def _normalized(self, input: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
        mean, var = self.running_mean, self.running_var
        if not self.training and mean is not None and var is not None:
            return batch_norm(input, residual, self.weight, self.bias, self.eps, relu, (mean, var))[0]
        count = input.shape[0] * input.shape[2] * input.shape[3]
        if count == 1:
            raise ValueError(
                f"Expected more than 1 value per channel when training, got input size {tuple(input.shape)}"
            )
        if self.eps <= 0:
            raise ValueError(f"batch_norm eps must be positive during training, but got {self.eps}")
        y, mean, var = batch_norm(input, residual, self.weight, self.bias, self.eps, relu)
        if self.training and self.track_running_stats:
            self._track(mean, var, count)
        return y

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Moves the running statistics towards a batch's: by ``momentum``, or to the average of all batches."""
        share = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if share is None:
                share = 1.0 / float(self.num_batches_tracked)
        if count == 0 or self.running_mean is None or self.running_var is None:
            return
        share = 0.0 if share is None else share
        self.running_mean.mul_(1 - share).add_(mean, alpha=share)
        self.running_var.mul_(1 - share).add_(var, alpha=share * count / (count - 1))

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.activation is None else f", activation={self.activation!r}")
