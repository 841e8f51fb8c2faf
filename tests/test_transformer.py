"""Contract 1: what is cached is what is computed anew, for every kind of positions, dtype and padding. And causality."""

import pytest
import torch
from torch import Tensor

from audiolm.transformer import IGNORED, Cache, LanguageModel, Transformer, TransformerConfig, bucket

POSITIONS = ["rotary", "t5", "rotary, 2 kv_heads", "t5, 1 kv_heads"]
VOCABULARY, LEVELS, CODES = 70, 3, 20


def config_of(positions: str) -> TransformerConfig:
    kind, _, shared = positions.partition(", ")
    kv_heads = int(shared[0]) if shared else None
    return TransformerConfig(layers=2, heads=4, kv_heads=kv_heads, width=32, ffn=48, positions=kind)  # type: ignore[arg-type]


def model_of(positions: str, dtype: torch.dtype = torch.float32) -> LanguageModel:
    torch.manual_seed(0)
    config = config_of(positions)
    model = LanguageModel(config, VOCABULARY, LEVELS, CODES).eval()
    for parameter in model.parameters():  # far from the start, where attention is nearly uniform and hides mistakes
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.to(dtype)


def ids_of(batch: int, length: int) -> Tensor:
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(1))


def in_steps(model: LanguageModel, ids: Tensor, sizes: list[int], padding: Tensor | None = None) -> Tensor:
    cache = Cache(model.transformer, len(ids), ids.shape[1] + 3, padding)
    return torch.cat([model.hidden(part, cache) for part in ids.split(sizes, dim=1)], dim=1)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9), (torch.bfloat16, 0.15)])
@torch.inference_mode()
def test_cached_is_uncached(positions: str, dtype: torch.dtype, tolerance: float) -> None:
    model, ids = model_of(positions, dtype), ids_of(2, 40)
    whole = model.hidden(ids)
    for sizes in ([40], [1] * 40, [17] + [1] * 23, [5, 20, 1, 14]):
        assert (in_steps(model, ids, sizes) - whole).abs().max() < tolerance
    assert (model.hidden(ids, newest=True) - whole[:, -1:]).abs().max() < tolerance
    cache = Cache(model.transformer, 2, 40)
    for part in ids.split([25, 1, 14], dim=1):
        last = model.newest(part, cache)
        assert (last - whole[:, cache.length - 1 : cache.length]).abs().max() < tolerance


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_greedy_ids_are_the_same_with_and_without_cache(positions: str, dtype: torch.dtype) -> None:
    model, ids = model_of(positions, dtype), ids_of(2, 9)
    cache = Cache(model.transformer, 2, 60)
    cached, newest = ids, ids
    anew = ids
    for step in range(50):
        newest = model.logits(model.hidden(newest, cache)[:, -1], step % LEVELS).argmax(-1, keepdim=True)
        cached = torch.cat((cached, newest), 1)
        anew = torch.cat((anew, model.logits(model.hidden(anew)[:, -1], step % LEVELS).argmax(-1, keepdim=True)), 1)
    assert torch.equal(cached, anew)
    assert cached[:, 9:].unique().numel() > 3  # not a loop of one code, in which anything would agree


@pytest.mark.parametrize("positions", POSITIONS)
@torch.inference_mode()
def test_autocast_reaches_the_cache(positions: str) -> None:
    model, ids = model_of(positions), ids_of(2, 30)
    exact = model.hidden(ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        whole, steps = model.hidden(ids), in_steps(model, ids, [20] + [1] * 10)
    assert (steps - whole).abs().max() < 0.15
    assert (whole - exact).abs().max() < 0.3


@pytest.mark.parametrize("positions", POSITIONS)
@torch.inference_mode()
def test_left_padding_is_exact(positions: str) -> None:
    model, ids = model_of(positions, torch.float64), ids_of(3, 30)
    padding = torch.tensor([0, 7, 19])
    steps = in_steps(model, ids, [25, 1, 1, 3], padding)
    absent = torch.arange(30) < padding[:, None]
    whole = model.transformer(model.embedding(ids), absent=absent)
    assert not steps.isnan().any()
    for row, pads in enumerate(padding.tolist()):
        alone = model.hidden(ids[row : row + 1, pads:])[0]
        assert (steps[row, pads:] - alone).abs().max() < 1e-9
        assert (whole[row, pads:] - alone).abs().max() < 1e-9


@pytest.mark.parametrize("positions", POSITIONS)
@torch.inference_mode()
def test_prompts_read_row_by_row_are_those_read_at_once(positions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids, padding = model_of(positions, torch.float64), ids_of(3, 20), torch.tensor([0, 7, 3])
    found = []
    for together in (1, 40, 1000):
        monkeypatch.setattr("audiolm.transformer.TOGETHER", together)
        cache = Cache(model.transformer, 3, 25, padding)
        found.append([model.newest(part, cache) for part in ids.split([15, 1, 4], dim=1)])
    for other in found[:-1]:
        torch.testing.assert_close(other, found[-1], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("positions", POSITIONS)
@torch.inference_mode()
def test_the_future_changes_nothing(positions: str) -> None:
    model, ids = model_of(positions, torch.float64), ids_of(2, 30)
    changed = ids.clone()
    changed[:, 20:] = (changed[:, 20:] + 1) % VOCABULARY
    before, after = model.hidden(ids), model.hidden(changed)
    assert torch.equal(before[:, :20], after[:, :20])
    assert bool((before[:, 20:] != after[:, 20:]).any(-1).all())
    assert bool((model.hidden(ids[:, 1:])[:, -1] != before[:, -1]).any())  # while the past does


@pytest.mark.parametrize("positions", POSITIONS)
@torch.inference_mode()
def test_bidirectional_sees_both_sides_and_not_the_absent(positions: str) -> None:
    torch.manual_seed(0)
    network, x = Transformer(config_of(positions), causal=False).double().eval(), torch.randn(2, 20, 32).double()
    absent = torch.arange(20) >= torch.tensor([20, 14])[:, None]
    whole = network(x, absent=absent)
    assert (whole[1, :14] - network(x[1:, :14])[0]).abs().max() < 1e-9
    changed = x.clone()
    changed[:, 13] += torch.randn(32).double()
    assert bool((network(changed, absent=absent)[:, :13] != whole[:, :13]).any(-1).all())
    if positions.startswith("t5"):  # before and after are told apart
        assert (network(x.flip(1)).flip(1) - network(x)).abs().max() > 1e-4


def test_t5_buckets() -> None:
    distances = torch.tensor([-5, 0, 1, 15, 16, 17, 30, 127, 128, 5000])
    assert bucket(distances, causal=True).tolist() == [0, 0, 1, 15, 16, 16, 20, 31, 31, 31]
    both = bucket(torch.arange(-300, 301), causal=False)
    assert sorted(both.unique().tolist()) == [i for i in range(32) if i != 16]  # "zero after" cannot happen
    assert int((bucket(torch.arange(1, 5), False) == bucket(-torch.arange(1, 5), False)).sum()) == 0


@pytest.mark.parametrize("positions", POSITIONS)
def test_loss_is_cross_entropy_of_each_level_over_its_own_codes(positions: str) -> None:
    model = model_of(positions)
    ids, starts = ids_of(2, 12), torch.tensor([0, 4])
    targets = torch.randint(CODES, (2, 3, LEVELS))
    targets[0, 2, 0] = CODES  # the end
    targets[0, 2, 1:] = targets[1, 2, 1:] = IGNORED
    nats, counts = model(ids, starts, targets)
    hidden = model.hidden(ids)
    expected = torch.zeros(LEVELS)
    for row, start in enumerate(starts.tolist()):
        for k, code in enumerate(targets[row].flatten().tolist()):
            if code != IGNORED:
                expected[k % LEVELS] -= model.logits(hidden[row, start + k], k % LEVELS, end=True).log_softmax(-1)[code]
    torch.testing.assert_close(nats, expected)
    assert counts.tolist() == [6, 4, 4]
    assert model.logits(hidden, 0, end=True).shape[-1] == CODES + 1
    assert model.logits(hidden, 1, end=True).shape[-1] == CODES
    nats.sum().backward()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in model.parameters())


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="multiple"):
        TransformerConfig(width=30, heads=4)
    with pytest.raises(ValueError, match="kv_heads"):
        TransformerConfig(width=32, heads=4, kv_heads=3)


@pytest.mark.slow
@pytest.mark.parametrize("positions", POSITIONS)
def test_compiled_is_eager(positions: str) -> None:
    eager, compiled, ids = model_of(positions), model_of(positions), ids_of(2, 40)
    compiled.transformer.compile()
    starts, targets = torch.tensor([0, 4]), torch.randint(CODES, (2, 3, LEVELS))
    torch.testing.assert_close(compiled(ids, starts, targets)[0], eager(ids, starts, targets)[0])
    with torch.inference_mode():
        torch.testing.assert_close(in_steps(compiled, ids, [30] + [1] * 10), eager.hidden(ids), atol=1e-4, rtol=1e-4)
