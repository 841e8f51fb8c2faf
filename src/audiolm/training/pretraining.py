"""Three self-supervised objectives to train the semantic encoder without text, on one network.

    WavToVecBert   contrastive loss against a learnt quantizer in the lower blocks, prediction of its ids in the upper ones
                   (2108.06209)
    BestRQ         predict which random vector is nearest to a random projection of the hidden frames (2202.01855)
    Clusters       predict k-means units of MFCC or of a layer of an earlier encoder (HuBERT, 2106.07447)

All of them hide (mask) spans of the input frames and are scored on the hidden frames; MaskConfig.visible adds a loss on the
others. The input may be an augmented recording and the targets its clean original, frame by frame. M is a number of mel frames
(100 Hz), F of encoder frames (25 Hz): M = 4 F.
"""

import math
from typing import Literal, Self

import torch
import torch.nn.functional as nnf
from pydantic import Field, model_validator
from torch import Generator, Tensor, nn

from audiolm.config import Config
from audiolm.conformer import STACK, Conformer, ConformerConfig
from audiolm.errors import InputError


class MaskConfig(Config):
    """Which frames are hidden: random spans of `span` frames that together cover about `fraction` of all frames."""

    span: int = Field(default=6, ge=1)
    fraction: float = Field(default=0.45, gt=0, lt=1)
    noise: float = Field(default=0.1, ge=0)  # standard deviation of the noise that replaces them; the mel has 1
    visible: float = Field(default=0.0, ge=0)  # weight of the loss on the other frames: a faster start when compute is scarce


def span_mask(batch: int, frames: int, config: MaskConfig, generator: Generator) -> Tensor:
    """Hidden frames (B, F), True where hidden; every item hides at least one span and shows at least one frame."""
    start = 1 - (1 - config.fraction) ** (1 / config.span)  # so that no span covers a frame with probability 1 - fraction
    span = max(1, min(config.span, frames - 1))
    starts = torch.rand(batch, frames, generator=generator) < start
    rows, free = torch.arange(batch), max(1, frames - span)
    starts[rows, torch.randint(free, (batch,), generator=generator)] = True
    hidden = nnf.max_pool1d(nnf.pad(starts[:, None].float(), (span - 1, 0)), span, 1)[:, 0] > 0
    hidden[rows[hidden.all(1)], -1] = False
    return hidden


def hide(mel: Tensor, hidden: Tensor, noise: float, generator: Generator) -> Tensor:
    """Mel (B, M, bins) with the frames under hidden frames (B, F) replaced by noise."""
    fill = noise * torch.randn(mel.shape, generator=generator).to(mel)
    return torch.where(hidden.repeat_interleave(STACK, 1)[..., None].to(mel.device), fill, mel)


def guess(logits: Tensor, targets: Tensor, hidden: Tensor | None = None, visible: float = 0.0) -> dict[str, Tensor]:
    """Cross entropy and accuracy of logits (B, F, Q, N) against ids (B, F, Q) over the hidden frames (None: all frames).

    The loss on the other frames is added with weight `visible`; HuBERT finds 0 best in the long run.
    """
    if hidden is None:
        hidden = torch.ones(targets.shape[:2], dtype=torch.bool, device=targets.device)
    logits_hidden, targets_hidden = logits[hidden], targets[hidden]
    loss = nnf.cross_entropy(logits_hidden.float().flatten(0, 1), targets_hidden.flatten())
    if visible:
        loss = loss + visible * nnf.cross_entropy(logits[~hidden].float().flatten(0, 1), targets[~hidden].flatten())
    return {"loss": loss, "accuracy": (logits_hidden.argmax(-1) == targets_hidden).float().mean()}


def centred(mel: Tensor) -> Tensor:
    """Frames (B, M, D), normalised by each clip's mean and standard deviation: voice and microphone affect targets less."""
    return (mel - mel.mean(1, keepdim=True)) / (mel.std(1, keepdim=True) + 1e-2)


class BestRQConfig(Config):
    """`codebooks` random quantizers, each with `codes` unit vectors of `dimension`."""

    kind: Literal["best_rq"] = "best_rq"
    mask: MaskConfig = MaskConfig()
    codes: int = Field(default=1024, ge=2)
    codebooks: int = Field(default=4, ge=1)
    dimension: int = Field(default=16, ge=1)


class BestRQ(nn.Module):
    """Predict ids of random quantizers that are never trained: no teacher, no collapse, and cheap targets."""

    def __init__(self, config: BestRQConfig, network: ConformerConfig, seed: int = 0):
        super().__init__()
        self.config = config
        draw, stacked = Generator().manual_seed(seed), STACK * network.bins
        bound = math.sqrt(6 / (stacked + config.dimension))  # Xavier
        weights = torch.rand(config.codebooks, stacked, config.dimension, generator=draw)
        self.projection = nn.Buffer((weights * 2 - 1) * bound)
        vectors = torch.randn(config.codebooks, config.dimension, config.codes, generator=draw)
        self.codebook = nn.Buffer(nnf.normalize(vectors, dim=1))
        self.head = nn.Linear(network.width, config.codebooks * config.codes)

    def targets(self, mel: Tensor) -> Tensor:
        """Ids (B, F, Q) of normalised mel (B, M, bins): the unit vector nearest to the projected direction."""
        with torch.autocast(mel.device.type, enabled=False):
            stacked = centred(mel).unflatten(1, (-1, STACK)).flatten(2)
            return torch.einsum("bfs,qsd,qdn->bfqn", stacked, self.projection, self.codebook).argmax(-1)

    def forward(self, conformer: Conformer, mel: Tensor, clean: Tensor, generator: Generator) -> dict[str, Tensor]:
        """Loss and accuracy over the hidden frames of augmented mel, against the targets of the clean one (both (B, M, bins))."""
        hidden = span_mask(len(mel), mel.shape[1] // STACK, self.config.mask, generator).to(mel.device)
        logits = self.head(conformer(hide(mel, hidden, self.config.mask.noise, generator))[-1])
        return guess(logits.unflatten(-1, (self.config.codebooks, -1)), self.targets(clean), hidden, self.config.mask.visible)


class WavToVecBertConfig(Config):
    """The first `contrastive_layers` blocks identify the true quantised frame, the others predict its id (2108.06209)."""

    kind: Literal["w2v_bert"] = "w2v_bert"
    mask: MaskConfig = MaskConfig()
    contrastive_layers: int = Field(default=4, ge=1)
    codes: int = Field(default=320, ge=2)
    codebooks: int = Field(default=1, ge=1)  # of the product quantizer
    dimension: int = Field(default=256, ge=1)  # of quantised frames, over all codebooks
    negatives: int = Field(default=100, ge=1)
    temperature: float = Field(default=0.1, gt=0)  # of the contrastive loss
    gumbel: tuple[float, float, float] = (2.0, 0.5, 0.9995)  # Gumbel softmax: first and last temperature, decay per update
    diversity: float = Field(default=0.1, ge=0)

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if self.dimension % self.codebooks:
            raise ValueError(f"dimension={self.dimension} must be a multiple of codebooks={self.codebooks}")
        return self

    def check(self, network: ConformerConfig) -> None:
        """Raises InputError if no block of the network is left for the prediction."""
        if self.contrastive_layers >= network.layers:
            raise InputError(
                f"objective.contrastive_layers={self.contrastive_layers} must be less than the network's {network.layers} layers"
            )


class WavToVecBert(nn.Module):
    """Contrastive loss and masked prediction together: L = L_contrast + diversity * L_diversity + L_prediction."""

    def __init__(self, config: WavToVecBertConfig, network: ConformerConfig):
        super().__init__()
        config.check(network)
        self.config = config
        self.choose = nn.Linear(network.width, config.codebooks * config.codes)
        self.codebook = nn.Parameter(torch.randn(config.codebooks, config.codes, config.dimension // config.codebooks))
        self.out, self.context = nn.Linear(config.dimension, config.dimension), nn.Linear(network.width, config.dimension)
        self.head = nn.Linear(network.width, config.codebooks * config.codes)
        self.updates = nn.Buffer(torch.zeros((), dtype=torch.int64))

    def quantise(self, x: Tensor, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Frames (L, D) -> quantised (L, dimension), ids (L, Q), and how evenly codes are used, 0 to 1 (perplexity / codes).

        Training samples a code by the Gumbel trick with straight-through gradients; evaluation takes the likeliest.
        """
        logits = self.choose(x).float().unflatten(-1, (self.config.codebooks, -1))
        first, last, decay = self.config.gumbel
        temperature = max(last, first * decay ** int(self.updates))
        if self.training:
            self.updates += 1
            uniform = torch.rand(logits.shape, generator=generator).to(logits).clamp(1e-9, 1 - 1e-7)
            logits_drawn = (logits - (-uniform.log()).log()) / temperature
        else:
            logits_drawn = logits
        ids, soft = logits_drawn.argmax(-1), logits_drawn.softmax(-1)
        hard = nnf.one_hot(ids, self.config.codes).float() + soft - soft.detach()
        share = logits.softmax(-1).mean(0)
        evenness = (-(share * (share + 1e-9).log()).sum(-1)).exp().mean() / self.config.codes
        return self.out(torch.einsum("lqn,qnd->lqd", hard, self.codebook).flatten(1)), ids, evenness

    def contrast(self, context: Tensor, quantised: Tensor, hidden: Tensor, generator: Generator) -> Tensor:
        """Cross entropy of picking each hidden frame's quantised vector among those of other hidden frames of its clip."""
        counts = hidden.sum(1)
        starts, rows = counts.cumsum(0) - counts, torch.nonzero(hidden)[:, 0]
        draws = torch.rand(len(rows), self.config.negatives, generator=generator).to(hidden.device)
        others = starts[rows, None] + (draws * counts[rows, None]).long().clamp_max(counts[rows, None] - 1)
        candidates = torch.cat((quantised[:, None], quantised[others]), 1)
        logits = nnf.cosine_similarity(context[:, None], candidates, -1) / self.config.temperature
        same = (candidates[:, 1:] == quantised[:, None]).all(-1)  # an equal code is not a negative
        logits = torch.cat((logits[:, :1], logits[:, 1:].masked_fill(same, -torch.inf)), 1)
        return nnf.cross_entropy(logits, torch.zeros(len(rows), dtype=torch.int64, device=logits.device))

    def forward(self, conformer: Conformer, mel: Tensor, clean: Tensor, generator: Generator) -> dict[str, Tensor]:
        """Like BestRQ's; also returns the two parts of the loss and the evenness of code usage."""
        hidden = span_mask(len(mel), mel.shape[1] // STACK, self.config.mask, generator).to(mel.device)
        quantised, ids, evenness = self.quantise(conformer.features(clean)[hidden], generator)
        outputs = conformer(hide(mel, hidden, self.config.mask.noise, generator))
        context = self.context(outputs[self.config.contrastive_layers][hidden])
        contrastive = self.contrast(context.float(), quantised.float(), hidden, generator)
        result = guess(self.head(outputs[-1][hidden]).unflatten(-1, (self.config.codebooks, -1))[None], ids[None])
        parts = {"contrastive": contrastive, "prediction": result["loss"], "evenness": evenness}
        total = contrastive + self.config.diversity * (1 - evenness) + result["loss"]
        return {"loss": total, "accuracy": result["accuracy"]} | {name: part.detach() for name, part in parts.items()}


class ClustersConfig(Config):
    """Targets are `units` k-means units of `layer` of an earlier pass's encoder, or of MFCC if `layer` is None."""

    kind: Literal["clusters"] = "clusters"
    mask: MaskConfig = MaskConfig()
    units: int = Field(default=256, ge=2)
    layer: int | None = Field(default=None, ge=0)


class Clusters(nn.Module):
    """Predict the units that `teacher` assigns to clean mel: (B, M, bins) -> (B, F) int64. The teacher is not trained."""

    def __init__(self, config: ClustersConfig, network: ConformerConfig, teacher: nn.Module):
        super().__init__()
        self.config, self.teacher = config, teacher.requires_grad_(False)
        self.head = nn.Linear(network.width, config.units)

    def forward(self, conformer: Conformer, mel: Tensor, clean: Tensor, generator: Generator) -> dict[str, Tensor]:
        """Like BestRQ's."""
        hidden = span_mask(len(mel), mel.shape[1] // STACK, self.config.mask, generator).to(mel.device)
        with torch.no_grad():
            targets = self.teacher.eval()(clean)
        logits = self.head(conformer(hide(mel, hidden, self.config.mask.noise, generator))[-1])
        return guess(logits[:, :, None], targets[..., None], hidden, self.config.mask.visible)
