"""Matrix products with constant weights, packed once for the CPU's best kernel. For generation only.

The cost of a decoding step is reading its weights. On CPUs, `torch.nn.functional.linear` reads them unpacked, in 32 bits and
far below memory bandwidth; other kernels in torch read packed weights, in fewer bits and almost at that bandwidth:

    fp32   oneDNN, weights reordered: exact
    fp16   FBGEMM, weights in 16 bits, everything else in 32: almost exact, half the bytes; the default if FBGEMM is available
    bf16   oneDNN, weights and activations rounded to bfloat16: fastest for many rows; only if the CPU supports bfloat16
    int8   FBGEMM, weights and activations in 8 bits with a scale per row (activations in 7 without VNNI): a quarter of the bytes

In every precision the rows of a product are independent. But only if activations stay in 32 bits does a batch reliably give the
same codes as its items alone: a single different rounding changes everything sampled after it.
Gains and losses of each: docs/performance.md. Letters: K inputs, N outputs.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal, Self, cast

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from audiolm.errors import InputError

Precision = Literal["fp32", "fp16", "bf16", "int8"]
Product = Callable[[Tensor], Tensor]  # (..., K) float32 -> (..., N) float32

_ONEDNN = 1  # number of rows that oneDNN lays weights out for: layouts differ little, and decoding one row matters most


class Packing(nn.Module):
    """A module that `use` packs. With gradients, or once its weights change or move, it computes with plain ones."""

    packed: Any = None
    version = 0

    def pack(self, precision: Precision | None) -> None:
        """Pack the weights; None returns to plain ones."""
        raise NotImplementedError

    def fresh(self, weight: Tensor) -> bool:
        """Whether what is packed may stand for the weight now."""
        return self.version == version(weight) and not torch.is_grad_enabled()

    def _apply(self, fn: Callable[..., Tensor], recurse: bool = True) -> Self:
        self.packed = None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.packed = None
        super()._load_from_state_dict(*args, **kwargs)


class Linear(Packing, nn.Linear):
    """A linear layer without bias that can be packed."""

    packed: Product | None = None

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def pack(self, precision: Precision | None) -> None:
        """See `Packing`."""
        self.packed = None if precision is None else packed(self.weight, precision)
        self.version = version(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        if self.packed is not None and self.fresh(self.weight):
            return self.packed(input)
        return nnf.linear(input, self.weight)


def version(weight: Tensor) -> int:
    """A number that changes whenever the weight is changed in place."""
    return 0 if weight.is_inference() else weight._version


def use(network: nn.Module, precision: Precision | Literal["auto"] | None = "auto") -> Precision | None:
    """Pack every layer of a network that can be packed; returns the precision. Raises InputError if the CPU lacks it.

    "auto": the fastest that hardly changes sampled codes, by the rule in docs/performance.md; None on other devices.
    """
    weight = next(network.parameters())
    chosen = best(weight.device) if precision == "auto" else precision
    if chosen is not None and chosen not in available(weight.device):
        having = ", ".join([*available(weight.device), "auto"])
        raise InputError(f"precision {chosen}: not available on {weight.device.type}; choose from: {having}")
    if weight.dtype == torch.float32 or chosen is None:
        for module in network.modules():
            if isinstance(module, Packing):
                module.pack(chosen)
    return chosen


def available(device: torch.device) -> list[Precision]:
    """The precisions that have kernels on this machine."""
    if device.type != "cpu":
        return []
    onednn, fbgemm = torch.backends.mkldnn.is_available(), "fbgemm" in torch.backends.quantized.supported_engines
    bf16 = onednn and torch.ops.mkldnn._is_mkldnn_bf16_supported()  # many CPUs cannot
    there: dict[Precision, bool] = {"fp32": onednn, "fp16": fbgemm, "bf16": bf16, "int8": fbgemm}
    return [precision for precision, found in there.items() if found]


def best(device: torch.device) -> Precision | None:
    """The precision for "auto": fixed by the measurements in docs/performance.md and not measured anew, so seeds stay valid."""
    having = available(device)
    return "fp16" if "fp16" in having else "fp32" if "fp32" in having else None


@torch.no_grad()
def packed(weight: Tensor, precision: Precision) -> Product:
    """The product with a matrix (N, K), float32 in and out."""
    weight = weight.detach().float().contiguous()
    if precision == "fp32":
        ready = torch.ops.mkldnn._reorder_linear_weight(weight, _ONEDNN)
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, ready, None, "none", [], "")
    if precision == "bf16":
        ready = torch.ops.mkldnn._reorder_linear_weight(weight.bfloat16(), _ONEDNN)
        return lambda x: torch.ops.mkldnn._linear_pointwise(x.bfloat16(), ready, None, "none", [], "").float()
    if precision == "int8":
        return _int8(weight, 7 if overflows() else 8)
    with _fbgemm():
        ready = torch.ops.quantized.linear_prepack_fp16(weight, None)
    return lambda x: torch.ops.quantized.linear_dynamic_fp16(x, ready)


def _int8(weight: Tensor, bits: int) -> Product:
    """Weights in 8 bits with a scale per row, activations in `bits`."""
    scale = weight.abs().amax(1).clamp_min(1e-12) / 127
    # FBGEMM scales all rows of a product by their common extremes. Two extra columns fix these at -1 and 1.
    codes = nnf.pad((weight / scale[:, None]).round().to(torch.int8), (0, 2))
    zeros = torch.zeros(len(scale), dtype=torch.int64)
    with _fbgemm(), warnings.catch_warnings():  # torch deprecates quantised tensors in favour of torchao
        warnings.simplefilter("ignore")
        tensor = cast(Any, torch)._make_per_channel_quantized_tensor(codes, scale.double(), zeros, 0)
        ready = torch.ops.quantized.linear_prepack(tensor, None)
    extremes = torch.tensor([-1.0, 1.0])

    def product(x: Tensor) -> Tensor:
        largest = torch.linalg.vector_norm(x, torch.inf, -1, True).clamp_min_(1e-12)
        row = torch.cat((x / largest, extremes.expand(*x.shape[:-1], 2)), -1)
        return torch.ops.quantized.linear_dynamic(row, ready, bits < 8).mul_(largest)

    return product


@cache
def overflows() -> bool:
    """Whether FBGEMM adds pairs of 8-bit products in 16 bits here, as it does without VNNI: two large ones saturate then."""
    largest = torch.ones(1, 64)
    return float(_int8(largest, 8)(largest)) < 60


@contextmanager
def _fbgemm() -> Iterator[None]:
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        yield
    finally:
        torch.backends.quantized.engine = cast(Any, before)
