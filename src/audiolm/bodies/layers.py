"""Causal layers that stream: each keeps its past in the dictionary `state` (initially none: silence)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

State = dict[nn.Module, Tensor]


class CausalConv1d(nn.Module):
    """Convolution (B, C, F) that pads the past only, with (kernel - 1) * dilation + 1 - stride inputs of history."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.history = (kernel - 1) * dilation + 1 - stride
        self.conv = nn.Conv1d(inputs, outputs, kernel, stride, dilation=dilation, groups=groups)

    def forward(self, x: Tensor, state: State) -> Tensor:
        past = state.get(self)
        x = F.pad(x, (self.history, 0)) if past is None else torch.cat([past, x], -1)
        if self.history:
            state[self] = x[..., x.shape[-1] - self.history :]
        return self.conv(x)


class CausalUpsample1d(nn.Module):
    """Transposed convolution with kernel 2S and stride S; the half that reaches into the future is kept in the state."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.ConvTranspose1d(inputs, outputs, 2 * stride, stride, bias=False)
        self.bias = nn.Parameter(torch.zeros(outputs, 1))

    def forward(self, x: Tensor, state: State) -> Tensor:
        y = self.conv(x)
        past = state.get(self)
        if past is not None:
            y = torch.cat([y[..., : self.stride] + past, y[..., self.stride :]], -1)
        state[self] = y[..., -self.stride :]
        return y[..., : -self.stride] + self.bias


def silent(layer: nn.Linear) -> nn.Linear:
    """The layer with weights and bias set to zero, so that it initially outputs zero."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class CausalBlock(nn.Module):
    """ConvNeXt block (B, F, D) at the frame rate: causal depthwise convolution, layer norm, inverted bottleneck.

    The last layer starts at zero, so a new stack is the identity.
    """

    def __init__(self, width: int, kernel: int = 7) -> None:
        super().__init__()
        self.mix = CausalConv1d(width, width, kernel, groups=width)
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = silent(nn.Linear(4 * width, width))

    def forward(self, x: Tensor, state: State) -> Tensor:
        y = self.mix(x.transpose(1, 2), state).transpose(1, 2)
        return x + self.narrow(F.gelu(self.widen(self.norm(y))))
