"""Packed products: near the plain ones, each row by itself, and out of the way where a gradient or a move needs the weights."""

import pytest
import torch
from torch import nn

from audiolm import kernels
from audiolm.errors import InputError
from audiolm.kernels import Linear
from audiolm.transformer import Cache, LanguageModel, TransformerConfig

CPU = torch.device("cpu")
# Relative error of a product of normal numbers, and of the hidden state behind two layers, cached against uncached.
TOLERANCE = {"fp32": (1e-6, 1e-5), "fp16": (4e-4, 1e-5), "bf16": (5e-3, 2e-2), "int8": (2e-2, 5e-2)}


def networks() -> LanguageModel:
    torch.manual_seed(0)
    model = LanguageModel(TransformerConfig(layers=2, heads=2, width=64, ffn=96), 50, 3, 40).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.15)
    return model


@pytest.mark.parametrize("precision", kernels.available(CPU))
@pytest.mark.parametrize("shape", [(96, 64), (1408, 256)])
@torch.inference_mode()
def test_products_are_near_and_rows_do_not_know_each_other(precision: kernels.Precision, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(shape) * 0.05, torch.randn(9, shape[1])
    x[3] *= 1000  # a loud neighbour
    x[4] = 0
    product = kernels.packed(weight, precision)
    whole, expected = product(x), x @ weight.T
    assert (whole - expected).norm(dim=1).div(expected.norm(dim=1).clamp_min(1)).max() < TOLERANCE[precision][0]
    alone = torch.cat([product(row[None]) for row in x])
    torch.testing.assert_close(product(x.view(3, 3, -1)).view(whole.shape), whole)
    if precision in ("fp32", "fp16"):  # some kernels add up in another order for another number of rows
        assert (alone - whole).norm(dim=1).div(whole.norm(dim=1).clamp_min(1)).max() < 1e-5
    else:
        assert torch.equal(alone, whole)


@pytest.mark.parametrize("precision", kernels.available(CPU))
@torch.inference_mode()
def test_cached_is_uncached_in_every_precision(precision: kernels.Precision) -> None:
    model, ids = networks(), torch.randint(50, (2, 40))
    exact = model.hidden(ids)
    assert kernels.use(model, precision) == precision
    whole, cache = model.hidden(ids), Cache(model.transformer, 2, 40)
    steps = torch.cat([model.hidden(part, cache) for part in ids.split([17] + [1] * 23, 1)], 1)
    assert (steps - whole).norm() / whole.norm() < TOLERANCE[precision][1]
    assert (whole - exact).norm() / exact.norm() < 4 * TOLERANCE[precision][0]
    heads = model.logits(whole, 1)
    error = (heads - whole @ model.heads[1].T).norm() / heads.norm()
    assert error < TOLERANCE[precision][0]
    assert error > 0 or precision == "fp32"  # the packed weights were used


def test_weights_stay_and_gradients_flow() -> None:
    model, ids = networks(), torch.randint(50, (1, 8))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain = model.hidden(ids)
    kernels.use(model, "bf16" if "bf16" in kernels.available(CPU) else "auto")
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model.requires_grad_().hidden(ids), plain)  # with gradients the weights themselves
    model.hidden(ids).sum().backward()
    assert model.transformer.blocks[0].attention.qkv.weight.grad is not None  # type: ignore[union-attr]


@pytest.mark.parametrize("precision", kernels.available(CPU))
@torch.inference_mode()
def test_large_codes_of_one_sign_do_not_overflow(precision: kernels.Precision) -> None:
    weight, x = torch.ones(32, 256), torch.ones(3, 256)
    torch.testing.assert_close(kernels.packed(weight, precision)(x), x @ weight.T, rtol=0.01, atol=0)


@torch.no_grad()
def test_what_was_packed_is_forgotten_where_weights_change() -> None:
    one, other, ids = networks(), networks(), torch.randint(50, (1, 8))
    for parameter in other.parameters():
        parameter.mul_(1.5)
    kernels.use(one, "auto")
    for parameter in one.parameters():
        parameter.mul_(1.5)
    assert torch.equal(one.hidden(ids), other.hidden(ids))
    kernels.use(one, "auto")
    one.load_state_dict(other.state_dict())
    assert torch.equal(one.hidden(ids), other.hidden(ids))
    assert torch.equal(one.logits(one.hidden(ids), 0), other.logits(other.hidden(ids), 0))
    kernels.use(one, "auto")
    assert torch.equal(one.double().hidden(ids), other.double().hidden(ids))
    assert kernels.use(one, None) is None


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "available", lambda device: ["fp32"])
    assert kernels.best(CPU) == "fp32"
    with pytest.raises(InputError, match="precision int8: not available on cpu; choose from: fp32, auto"):
        kernels.use(Linear(4, 4), "int8")
    monkeypatch.setattr(kernels, "available", lambda device: [])
    assert kernels.best(CPU) is None
    assert kernels.use(Linear(4, 4)) is None
