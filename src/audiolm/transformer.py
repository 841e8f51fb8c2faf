"""The one Transformer of all stages (AudioLM §IV-B), and the language model over a stage's ids.

Pre-norm blocks with a gated feed-forward part; rotary positions in time, so that what belongs together is equally far apart
everywhere, or the paper's T5 bias, whose buckets all layers share. Both tell distances only, so padding on the left is
exact. Generation keeps keys and values in a `Cache` that is allocated once. The language model has one head per predicted
level: logits exist only over the codes of the level that is due.

N is the size of a codebook; the other letters are those of audiolm.tokens.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
import torch.nn.functional as nnf
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from audiolm.config import Config
from audiolm.kernels import Linear, Precision, Product, packed, version

IGNORED = -100  # a target that does not count
TOGETHER = 2048  # positions of prompts that are read at once
BUCKETS, FARTHEST = 32, 128  # T5's: buckets of distances, and the distance from which on all share the last one


class TransformerConfig(Config):
    """Shape of the network. The paper: 12 layers, 16 heads, width 1024, ffn 4096, dropout 0.1, positions "t5".

    positions: "time" rotates by when a frame sounds, "rotary" and "t5" count ids: then the distance between an acoustic id
    and the semantic id of the same instant is another one everywhere, and a small model never finds it (docs/training-log.md).
    kv_heads: keys and values that the heads share among themselves (GQA, 2305.13245; 1: MQA, 1911.02150); None: each has its own.
    Where many sounds are made at once, reading those is most of the time.
    """

    layers: PositiveInt = 6
    heads: PositiveInt = 6
    kv_heads: PositiveInt | None = None
    width: PositiveInt = 384
    ffn: PositiveInt = 1024  # the gated part has this many products
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
        """Of keys and values."""
        return self.kv_heads or self.heads


class Cache:
    """Keys and values of the positions seen so far, (B, kv_heads, size, width / heads) for each layer; allocated once.

    padding: how many ids at the left of each row are not there, (B,); None where no row has any.
    """

    def __init__(self, transformer: "Transformer", batch: int, size: int, padding: Tensor | None = None) -> None:
        config, device, dtype = transformer.config, transformer.norm.weight.device, transformer.dtype
        shape = (2, config.layers, batch, config.shared_heads, size, config.width // config.heads)
        self.kept = torch.empty(shape, device=device, dtype=dtype).flatten(0, 1)  # keys of all layers, then values
        self.layers, self.length = config.layers, 0
        self.tables = transformer.tables(size)
        self.unseen = None if padding is None else _unseen(torch.arange(size, device=device) < padding[:, None], dtype)

    def advance(self, count: int) -> None:
        """The next `count` positions are about to be written. All layers' views at once: a view costs as much as a sum."""
        end = self.length + count
        self.newest, self.live = self.kept[:, :, :, self.length : end].unbind(), self.kept[:, :, :, :end].unbind()
        self.length = end

    def rows(self, first: int, last: int) -> "Cache":
        """The part of an empty cache that belongs to rows [first, last); what is written there stands here too."""
        part = copy.copy(self)
        part.kept = self.kept[:, first:last]
        part.unseen = None if self.unseen is None else self.unseen[first:last]
        return part

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write the newest positions of one layer; views over all that are live, the newest included."""
        self.newest[layer].copy_(key)
        self.newest[self.layers + layer].copy_(value)
        return self.live[layer], self.live[self.layers + layer]


@dataclass
class Context:
    """What every layer of one forward pass shares: rotations, or a mask that holds T5's bias; and where the past is kept."""

    rotation: tuple[Tensor, Tensor] | None
    mask: Tensor | None
    causal: bool
    cache: Cache | None


class Attention(nn.Module):
    """Multi-head self-attention, whose heads may share keys and values; these and the queries come from one product."""

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
        if newest:  # sees all that there is
            query, mask, causal = query[:, :, -1:], None if mask is None else mask[..., -1:, :], False
        mixed = self._attend(query, key, value, mask, causal)
        return self.out(mixed.transpose(1, 2).reshape(batch, -1, width))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """Queries (B, heads, L, D / heads) -> the same, of keys and values (B, kv_heads, ...)."""
        # Attention weights have no dropout: the fused kernels for CPUs know none.
        if self.shared < self.heads and query.shape[2] == 1:
            # Heads that share keys stand side by side as if they were positions: every key is read once for all of them.
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
        # LayerNorm without bias, not RMSNorm: on CPUs only the former is one kernel, four times faster.
        self.attention_norm = nn.LayerNorm(config.width, bias=False)
        self.attention = Attention(config)
        self.ffn_norm = nn.LayerNorm(config.width, bias=False)
        self.gate_up = Linear(config.width, 2 * config.ffn)
        self.down = Linear(config.ffn, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, context: Context, layer: int, newest: bool = False) -> Tensor:
        """`newest`: the last position alone comes out."""
        mixed = self.attention(_normed(x, self.attention_norm), context, layer, newest)
        x = (x[:, -1:] if newest else x) + self._dropped(mixed)
        gate, up = self.gate_up(_normed(x, self.ffn_norm)).chunk(2, dim=-1)
        return x + self._dropped(self.down(nnf.silu(gate) * up))

    def _dropped(self, x: Tensor) -> Tensor:
        return self.dropout(x) if self.training else x


def _normed(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """What the module does, without the detours that take longer than one position's sum."""
    return torch.layer_norm(x, norm.normalized_shape, norm.weight, None, norm.eps)


class Transformer(nn.Module):
    """Vectors (B, L, D) -> vectors (B, L, D), each seeing itself and those before it, or all of them (`causal=False`)."""

    def __init__(self, config: TransformerConfig, causal: bool = True) -> None:
        super().__init__()
        self.config, self.causal = config, causal
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, bias=False)
        self.bias = nn.Embedding(BUCKETS, config.heads) if config.positions == "t5" else None
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                # The branches' last products are scaled down, so that the sum over all layers keeps the scale of one.
                last = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.layers) if last else 0.02)

    @property
    def dtype(self) -> torch.dtype:
        """Of queries, keys and values."""
        device = self.norm.weight.device.type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.norm.weight.dtype

    def tables(self, size: int) -> tuple[Tensor, ...]:
        """What can be known beforehand of `size` positions: rotary cosines and sines (size, 1, D / heads), or T5's bias.

        The latter is (heads, 2 size - 1): for every distance of query minus key, from size - 1 down to 1 - size.
        """
        device = self.norm.weight.device
        if self.bias is not None:
            distances = torch.arange(size - 1, -size, -1, device=device)
            return (self.bias(bucket(distances, self.causal)).T.to(self.dtype),)
        return self.rotation(torch.arange(size, device=device))

    def rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Rotary cosines and sines (..., 1, D / heads) of positions (...), which need not be whole."""
        half = self.config.width // self.config.heads // 2
        # Single precision would be off by 1e-4 at position 2,000, and by another 1e-4 once the row is padded.
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
        """x: all positions, (B, L, D); with a cache the next L, which may be all of a prompt or one.

        absent: True at positions that nobody may see, (B, L); with a cache, its padding says so instead. positions: where
        rotation puts each, (B, L), without which each follows the one before. newest: return the last position only, (B, 1, D).
        """
        length = x.shape[1]
        start = 0 if cache is None else cache.length
        if cache is None:
            unseen = None if absent is None else _unseen(absent, self.dtype)
        else:
            unseen = None if cache.unseen is None else cache.unseen[..., : start + length]
        # The kernel's own causal mask is for whole sequences only: it would let a single query see the first key alone.
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
        """0 and -inf to be added to the attention (B, heads, length, start + length); None where everything is seen."""
        if length == 1 or (unseen is None and not self.causal):
            return unseen
        mask = torch.zeros(length, start + length, device=self.norm.weight.device, dtype=self.dtype)
        if self.causal:
            mask = mask.fill_(-math.inf).triu(start + 1)
        if unseen is not None:
            mask = mask + unseen
            # Positions that are not there see themselves: a row of -inf alone would turn into NaN.
            mask.diagonal(start, -2, -1).zero_()
        return mask


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions (2104.09864) on (B, L, heads, D / heads): dimension i turns together with i + half."""
    return torch.addcmul(x * cosine, x.roll(x.shape[-1] // 2, -1), sine)


def bucket(distance: Tensor, causal: bool) -> Tensor:
    """T5's bucket of a distance of query minus key: near ones each have their own, farther ones share logarithmically."""
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
    last = table.shape[1] // 2 - start  # where the row of the first query begins; each next row begins one earlier
    if length == 1:
        return table[:, None, last : last + start + 1]
    return table[:, last - length + 1 : last + start + length].unfold(1, start + length, 1).flip(1)


class LanguageModel(nn.Module):
    """A Transformer over a stage's ids that predicts `levels` codes of `codebook_size` a frame, or the end before a frame.

    Position k after START predicts level k mod Q, with that level's own head. `places` puts ids (B, L), which must be whole
    as far as START, at positions (B, L); what follows them is at one position more each. None: each id at its own index.
    """

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
        self.packed: list[Product] | None = None  # the heads, see audiolm.kernels.Linear
        self.version = 0
        for parameter in (self.embedding.weight, self.heads, self.end):
            nn.init.normal_(parameter, std=0.02)

    def newest(self, ids: Tensor, cache: Cache) -> Tensor:
        """As `hidden`, but of the last position only, (B, 1, D): the last block then computes the others' keys and values alone.

        Prompts are read a few rows at a time: what many of them are in between would not fit the processor's caches.
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
        """Ids (B, L) -> (B, L, D), which `logits` turns into predictions of what comes after each."""
        whole = cache is None or cache.length == 0
        positions = self.places(ids) if whole and self.places is not None else None
        # A compiled network is for training: of what is written through the cache's views torch.compile loses some (2.13).
        run = self.transformer if cache is None else self.transformer.forward
        return run(self.embedding(ids), cache, positions=positions, newest=newest)

    def logits(self, hidden: Tensor, level: int, end: bool = False) -> Tensor:
        """(..., D) -> (..., N) over the codes of one level; `end`: one more, last, for the end (level 0 only)."""
        if self.packed is None or torch.is_grad_enabled() or self.version != version(self.heads):
            logits = nnf.linear(hidden, self.heads[level])
        else:
            logits = self.packed[level](hidden)
        return torch.cat((logits, nnf.linear(hidden, self.end)), -1) if end and level == 0 else logits

    def pack(self, precision: Precision | None) -> None:
        """The heads' part of `audiolm.kernels.use`."""
        self.packed = None if precision is None else [packed(head, precision) for head in self.heads]
        self.version = version(self.heads)

    def _apply(self, fn: Callable[..., Tensor], recurse: bool = True) -> Self:
        self.packed = None  # moved, or of another type
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.packed = None
        super()._load_from_state_dict(*args, **kwargs)

    def forward(self, ids: Tensor, starts: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Ids (B, L) padded on the right, the index of START in each row (B,), and codes (B, F, Q) of what follows it.

        A target of N at level 0 is the end; IGNORED ones do not count. Returns for each level the sum of the cross
        entropies in nats, and how many they are: (Q,) and (Q,).
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
