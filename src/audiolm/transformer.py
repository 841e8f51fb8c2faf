"""The decoder-only Transformer used by all stages (AudioLM §IV-B), and the language model over a stage's ids.

Pre-norm blocks with a gated feed-forward; either rotary positions in time, so that related given and predicted ids are the
same distance apart everywhere, or the paper's T5 relative bias, shared by all layers. Both depend on distances only, so
left padding is exact. Generation uses a preallocated key-value `Cache`. The language model has one head per predicted
level, so logits cover only the codes of the level being predicted.

N is the codebook size; for the other letters see audiolm.tokens.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self

import torch
import torch.nn.functional as nnf
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from audiolm.config import Config
from audiolm.kernels import Linear, Packing, Precision, Product, packed, version

IGNORED = -100  # target excluded from the loss
TOGETHER = 2048  # prompt positions processed at once on CPU
BUCKETS, FARTHEST = 32, 128  # T5: number of distance buckets, and the distance from which all share the last one


class TransformerConfig(Config):
    """Shape of the network. The paper: 12 layers, 16 heads, width 1024, ffn 4096, dropout 0.1, positions "t5".

    positions: "time" rotates by the time at which a frame sounds; "rotary" and "t5" count ids, so that the distance between an
    acoustic id and the semantic id of the same instant varies, and a small model never learns it (docs/training-log.md).
    kv_heads: key-value heads, shared by groups of query heads (GQA, 2305.13245; 1: MQA, 1911.02150); None: one per query head.
    In large batches, reading keys and values dominates the time.
    """

    layers: PositiveInt = 6
    heads: PositiveInt = 6
    kv_heads: PositiveInt | None = None
    width: PositiveInt = 384
    ffn: PositiveInt = 1024  # hidden units of the gated feed-forward, after gating
    dropout: float = Field(default=0.1, ge=0, lt=1)
    positions: Literal["time", "rotary", "t5"] = "time"

    @model_validator(mode="after")
    def _even_heads(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError(f"width={self.width} must be a multiple of twice heads={self.heads}")
        if self.heads % self.shared_heads:
            raise ValueError(f"heads={self.heads} must be a multiple of kv_heads={self.kv_heads}")
        return self

    @property
    def shared_heads(self) -> int:
        """Number of key-value heads."""
        return self.kv_heads or self.heads


class Cache:
    """Keys and values of the positions seen so far, (B, kv_heads, size, width / heads) per layer; allocated once.

    padding: number of padding ids at the left of each row, (B,); None if there are none.
    """

    def __init__(self, transformer: "Transformer", batch: int, size: int, padding: Tensor | None = None) -> None:
        config, device, dtype = transformer.config, transformer.norm.weight.device, transformer.dtype
        shape = (2, config.layers, batch, config.shared_heads, size, config.width // config.heads)
        self.kept = torch.empty(shape, device=device, dtype=dtype).flatten(0, 1)  # keys of all layers, then values
        self.layers, self.length = config.layers, 0
        self.tables = transformer.tables(size)
        self.unseen = None if padding is None else _unseen(torch.arange(size, device=device) < padding[:, None], dtype)

    def advance(self, count: int) -> None:
        """Make room for `count` new positions. Makes all layers' views at once, as a view costs as much as an addition."""
        end = self.length + count
        self.newest, self.live = self.kept[:, :, :, self.length : end].unbind(), self.kept[:, :, :, :end].unbind()
        self.length = end

    def rows(self, first: int, last: int) -> "Cache":
        """Rows [first, last) of an empty cache, as a cache that shares its memory."""
        part = copy.copy(self)
        part.kept = self.kept[:, first:last]
        part.unseen = None if self.unseen is None else self.unseen[first:last]
        return part

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write one layer's keys and values of the newest positions; return views of all positions so far."""
        self.newest[layer].copy_(key)
        self.newest[self.layers + layer].copy_(value)
        return self.live[layer], self.live[self.layers + layer]


@dataclass
class Context:
    """Shared by the layers in one forward pass: rotations, or a mask that includes T5's bias; and the cache."""

    rotation: tuple[Tensor, Tensor] | None
    mask: Tensor | None
    causal: bool
    cache: Cache | None


class Attention(nn.Module):
    """Multi-head self-attention with a fused QKV projection; query heads may share keys and values."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads, self.shared = config.heads, config.shared_heads
        self.qkv = Linear(config.width, (self.heads + 2 * self.shared) * (config.width // config.heads))
        self.out = Linear(config.width, config.width)

    def forward(self, x: Tensor, context: Context, layer: int, newest: bool = False) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, self.heads + 2 * self.shared, width // self.heads)
        queries_keys, value = qkv.split([self.heads + self.shared, self.shared], dim=2)
        if context.rotation is not None:
            queries_keys = rotate(queries_keys, *context.rotation)
        query, key = queries_keys.transpose(1, 2).split([self.heads, self.shared], dim=1)
        value = value.transpose(1, 2)
        if context.cache is not None:
            key, value = context.cache.extend(layer, key, value)
        mask, causal = context.mask, context.causal
        if newest:  # the last position sees all others: no causal mask
            query, mask, causal = query[:, :, -1:], None if mask is None else mask[..., -1:, :], False
        mixed = self._attend(query, key, value, mask, causal)
        return self.out(mixed.transpose(1, 2).reshape(batch, -1, width))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """Attention of queries (B, heads, L, D / heads) over keys and values (B, kv_heads, ...); the queries' shape."""
        # No dropout on attention weights: the fused CPU kernels do not support it.
        if self.shared < self.heads and query.shape[2] == 1:
            # Treat the heads that share keys as positions, so that each key is read once for all of them.
            if mask is not None and mask.ndim > 2 and mask.shape[-3] == self.heads:
                mask = mask.unflatten(-3, (self.shared, -1)).squeeze(-2)
            query = query.unflatten(1, (self.shared, -1)).squeeze(3)
            return nnf.scaled_dot_product_attention(query, key, value, mask).flatten(1, 2)[:, :, None]
        if self.shared < self.heads:
            key, value = (each.repeat_interleave(self.heads // self.shared, 1) for each in (key, value))
        return nnf.scaled_dot_product_attention(query, key, value, mask, is_causal=causal)


class Block(nn.Module):
    """x + attention(norm(x)), then x + gated feed-forward(norm(x))."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        # LayerNorm without bias rather than RMSNorm: on CPU only LayerNorm is a single kernel, four times faster.
        self.attention_norm = nn.LayerNorm(config.width, bias=False)
        self.attention = Attention(config)
        self.ffn_norm = nn.LayerNorm(config.width, bias=False)
        self.gate_up = Linear(config.width, 2 * config.ffn)
        self.down = Linear(config.ffn, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, context: Context, layer: int, newest: bool = False) -> Tensor:
        """`newest`: return the last position only."""
        mixed = self.attention(_normed(x, self.attention_norm), context, layer, newest)
        x = (x[:, -1:] if newest else x) + self._dropped(mixed)
        gate, up = self.gate_up(_normed(x, self.ffn_norm)).chunk(2, dim=-1)
        return x + self._dropped(self.down(nnf.silu(gate) * up))

    def _dropped(self, x: Tensor) -> Tensor:
        return self.dropout(x) if self.training else x


def _normed(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Apply the norm without the module's overhead, which exceeds the arithmetic for a single position."""
    return torch.layer_norm(x, norm.normalized_shape, norm.weight, None, norm.eps)


class Transformer(nn.Module):
    """Vectors (B, L, D) -> (B, L, D), causal or (`causal=False`) bidirectional."""

    def __init__(self, config: TransformerConfig, causal: bool = True) -> None:
        super().__init__()
        self.config, self.causal = config, causal
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, bias=False)
        self.bias = nn.Embedding(BUCKETS, config.heads) if config.positions == "t5" else None
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                # Residual branches' output projections are scaled down so that the residual stream keeps its scale.
                last = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.layers) if last else 0.02)

    @property
    def dtype(self) -> torch.dtype:
        """Data type of queries, keys and values."""
        device = self.norm.weight.device.type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.norm.weight.dtype

    def tables(self, size: int) -> tuple[Tensor, ...]:
        """Precomputed tables for `size` positions: rotary cosines and sines (size, 1, D / heads), or T5's bias.

        The latter is (heads, 2 size - 1): one value per distance (query minus key), from size - 1 down to 1 - size.
        """
        device = self.norm.weight.device
        if self.bias is not None:
            distances = torch.arange(size - 1, -size, -1, device=device)
            return (self.bias(bucket(distances, self.causal)).T.to(self.dtype),)
        return self.rotation(torch.arange(size, device=device))

    def rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Rotary cosines and sines (..., 1, D / heads) of positions (...), which may be fractional."""
        half = self.config.width // self.config.heads // 2
        # Float32 would be off by 1e-4 at position 2,000, and by a different 1e-4 when the row is padded.
        exact = torch.float32 if positions.device.type == "mps" else torch.float64
        rates = 10_000.0 ** (-torch.arange(half, device=positions.device, dtype=exact) / half)
        angles = positions[..., None, None].to(exact) * rates
        cosine, sine = angles.cos(), angles.sin()
        return torch.cat((cosine, cosine), -1).to(self.dtype), torch.cat((-sine, sine), -1).to(self.dtype)

    def forward(
        self,
        x: Tensor,
        cache: Cache | None = None,
        absent: Tensor | None = None,
        positions: Tensor | None = None,
        newest: bool = False,
    ) -> Tensor:
        """x: all positions, (B, L, D); with a cache, the next L positions, such as a whole prompt or a single one.

        absent: True at positions to mask out, (B, L); with a cache, its padding is used instead. positions: for rotary embedding,
        (B, L); default: consecutive. newest: return the last position only, (B, 1, D).
        """
        length = x.shape[1]
        start = 0 if cache is None else cache.length
        if cache is None:
            unseen = None if absent is None else _unseen(absent, self.dtype)
        else:
            unseen = None if cache.unseen is None else cache.unseen[..., : start + length]
        # The kernel's own causal mask works for whole sequences only: with a cache, a single query would see only the first key.
        causal = self.causal and start == 0 and unseen is None and self.bias is None
        mask = None if causal else self._mask(start, length, unseen)
        rotation = None
        if self.bias is None and positions is not None:
            rotation = self.rotation(positions)
        elif self.bias is None:
            cosine, sine = self.tables(length) if cache is None else cache.tables
            rotation = (cosine[start : start + length], sine[start : start + length])
        else:
            (table,) = self.tables(length) if cache is None else cache.tables
            bias = _bias_of(table, start, length)
            mask = bias[None] if mask is None else bias + mask
        if cache is not None:
            cache.advance(length)
        context = Context(rotation, mask, causal, cache)
        x = self.dropout(x) if self.training else x
        last = len(self.blocks) - 1
        for layer, block in enumerate(self.blocks):
            x = block(x, context, layer, newest and layer == last)
        return _normed(x, self.norm)

    def _mask(self, start: int, length: int, unseen: Tensor | None) -> Tensor | None:
        """Additive mask of 0 and -inf, broadcastable to (B, heads, length, start + length); None if nothing is masked."""
        if length == 1 or (unseen is None and not self.causal):
            return unseen
        mask = torch.zeros(length, start + length, device=self.norm.weight.device, dtype=self.dtype)
        if self.causal:
            mask = mask.fill_(-math.inf).triu(start + 1)
        if unseen is not None:
            mask = mask + unseen
            # Let padding positions see themselves: a row of only -inf would become NaN.
            mask.diagonal(start, -2, -1).zero_()
        return mask


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Apply rotary embedding (2104.09864) to (B, L, heads, D / heads): dimension i is paired with i + half."""
    return torch.addcmul(x * cosine, x.roll(x.shape[-1] // 2, -1), sine)


def bucket(distance: Tensor, causal: bool) -> Tensor:
    """T5's bucket of a distance (query minus key): one bucket each for short distances, logarithmic ones beyond."""
    buckets, first = BUCKETS, torch.zeros_like(distance)
    if not causal:
        buckets //= 2
        first = (distance < 0) * buckets
        distance = distance.abs()
    distance = distance.clamp_min(0)
    exact = buckets // 2
    far = exact + ((distance / exact).clamp_min(1).log() / math.log(FARTHEST / exact) * (buckets - exact)).long()
    return first + torch.where(distance < exact, distance, far.clamp_max(buckets - 1))


def _unseen(absent: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, L) flags as an additive mask (B, 1, 1, L)."""
    return torch.zeros(absent.shape, device=absent.device, dtype=dtype).masked_fill(absent, -math.inf)[:, None, None]


def _bias_of(table: Tensor, start: int, length: int) -> Tensor:
    """(heads, length, start + length) from the bias of every distance (heads, 2 size - 1)."""
    last = table.shape[1] // 2 - start  # where the first query's row begins; each further row begins one earlier
    if length == 1:
        return table[:, None, last : last + start + 1]
    return table[:, last - length + 1 : last + start + length].unfold(1, start + length, 1).flip(1)


class LanguageModel(Packing):
    """A Transformer over a stage's ids that predicts `levels` codes of `codebook_size` per frame, or the end before a frame.

    Position k after START predicts level k mod Q with that level's own head. `places` maps ids (B, L), which must include
    everything up to START, to positions (B, L); further ids take consecutive positions. None: positions are indices.
    """

    packed: list[Product] | None = None  # one per head

    def __init__(
        self,
        config: TransformerConfig,
        vocabulary: int,
        levels: int,
        codebook_size: int,
        causal: bool = True,
        places: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.places = places
        self.embedding = nn.Embedding(vocabulary, config.width)
        self.transformer = Transformer(config, causal)
        self.heads = nn.Parameter(torch.empty(levels, codebook_size, config.width))
        self.end = nn.Parameter(torch.empty(1, config.width))
        for parameter in (self.embedding.weight, self.heads, self.end):
            nn.init.normal_(parameter, std=0.02)

    def newest(self, ids: Tensor, cache: Cache) -> Tensor:
        """As `hidden`, but for the last position only, (B, 1, D): the last block computes only keys and values for the others.

        On CPU, prompts are processed a few rows at a time so that the activations fit the processor's caches.
        """
        if cache.length:
            return self.hidden(ids, cache, newest=True)
        rows = max(1, TOGETHER // ids.shape[1]) if ids.device.type == "cpu" else len(ids)
        parts = [
            self.hidden(part, cache.rows(first, first + len(part)), newest=True)
            for first, part in zip(range(0, len(ids), rows), ids.split(rows), strict=True)
        ]
        cache.length = ids.shape[1]
        return torch.cat(parts)

    def hidden(self, ids: Tensor, cache: Cache | None = None, newest: bool = False) -> Tensor:
        """Ids (B, L) -> (B, L, D), which `logits` turns into predictions of the id that follows each."""
        whole = cache is None or cache.length == 0
        positions = self.places(ids) if whole and self.places is not None else None
        # Compiled networks are for training only: torch.compile (2.13) loses some of the writes through the cache's views.
        run = self.transformer if cache is None else self.transformer.forward
        return run(self.embedding(ids), cache, positions=positions, newest=newest)

    def logits(self, hidden: Tensor, level: int, end: bool = False) -> Tensor:
        """(..., D) -> (..., N) over the codes of one level; `end`: append one logit for the end (level 0 only)."""
        if self.packed is not None and self.fresh(self.heads):
            logits = self.packed[level](hidden)
        else:
            logits = nnf.linear(hidden, self.heads[level])
        return torch.cat((logits, nnf.linear(hidden, self.end)), -1) if end and level == 0 else logits

    def pack(self, precision: Precision | None) -> None:
        """Pack the heads; see `audiolm.kernels.Packing`."""
        self.packed = None if precision is None else [packed(head, precision) for head in self.heads]
        self.version = version(self.heads)

    def forward(self, ids: Tensor, starts: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Ids (B, L) padded on the right, the index of START in each row (B,), and target codes (B, F, Q) that follow it.

        A target of N at level 0 is the end; IGNORED targets do not count. Returns, per level, the sum of the cross
        entropies in nats and their number: (Q,) and (Q,).
        """
        length, levels = ids.shape[1], targets.shape[2]
        predicted = torch.arange(targets[0].numel(), device=ids.device)
        index = (starts[:, None] + predicted).clamp_max(length - 1)
        index = index + length * torch.arange(len(ids), device=ids.device)[:, None]
        hidden = self.hidden(ids).flatten(0, 1).index_select(0, index.flatten()).view(*targets.shape, -1)
        nats = [
            nnf.cross_entropy(
                self.logits(hidden[:, :, level], level, end=True).flatten(0, 1).float(),
                targets[:, :, level].flatten(),
                ignore_index=IGNORED,
                reduction="sum",
            )
            for level in range(levels)
        ]
        return torch.stack(nats), (targets != IGNORED).sum((0, 1))
