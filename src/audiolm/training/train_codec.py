"""Train the codec: reconstruction losses first, with discriminators ("critics") for the last part of the budget.

Two optimisers in one explicit loop. The codec is initialised from data (principal components, k-means), so even its first
checkpoint is intelligible; the discriminators join after `adversarial_from` of the steps, because on small budgets they cost
half the speed and gain nothing before the reconstruction is good.
"""

import time
from collections.abc import Sequence
from typing import Annotated, Any, Self

import torch
from lightning.fabric import Fabric
from pydantic import Field, model_validator
from torch import Generator, Tensor

from audiolm.audio import Waveform
from audiolm.codec import Codec, CodecConfig
from audiolm.config import Config, Seed
from audiolm.quantizer import residual_energy
from audiolm.training.adversarial import Discriminators, discriminator_loss, generator_losses, mel_loss, spectral_losses
from audiolm.training.audio_store import Crops
from audiolm.training.engine import batches_of, clip, follow
from audiolm.training.randomness import random_untouched
from audiolm.training.run import Run, learning_rate


class LossWeights(Config):
    """Weights of the codec's losses."""

    mel: float = Field(default=1.0, ge=0)
    spectrum: float = Field(default=20.0, ge=0)  # complex: 0 for the vocoder body, which generates its own phases
    magnitude: float = Field(default=20.0, ge=0)
    commitment: float = Field(default=0.5, ge=0)
    energy: float = Field(default=3.0, ge=0)
    adversarial: float = Field(default=0.05, ge=0)
    matching: float = Field(default=0.1, ge=0)


class CodecTrainConfig(Config):
    """Architecture, budget and losses. `seconds` and `batch_size` define the crops."""

    network: CodecConfig = CodecConfig()
    weights: LossWeights = LossWeights()
    # Window lengths, in samples, of the losses on spectra; longer windows suit tones.
    windows: tuple[Annotated[int, Field(ge=2)], ...] = Field(default=(320, 640, 1280), min_length=1)
    seconds: float = Field(default=1.0, gt=0)
    batch_size: int = Field(default=8, ge=1)
    accumulate: int = Field(default=1, ge=1)  # batches in a step
    steps: int = Field(default=20_000, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    floor: float = Field(default=0.02, ge=0, le=1)  # share of lr at the end of the cosine
    warmup: int = Field(default=200, ge=0)  # steps
    weight_decay: float = Field(default=0.01, ge=0)
    clip: float = Field(default=1.0, gt=0)
    ema: float = Field(default=0.995, ge=0, lt=1)  # moving average of the weights, which is what is evaluated and kept
    gain: float = Field(default=6.0, ge=0)  # dB, largest random gain of each crop, up or down
    dropout: float = Field(default=0.5, ge=0, le=1)  # share of crops that use a random number of levels
    adversarial_from: float = Field(default=0.8, ge=0, le=1)  # share of the steps before the discriminators join; 1: never
    discriminator_lr: float = Field(default=3e-4, gt=0)
    discriminator_channels: int = Field(default=16, ge=1)
    discriminator_batch: int = Field(default=4, ge=1)  # crops of each batch that the discriminators see
    train_encoder: bool = True  # False: the initialised codec's codes stay as they are and only the decoder learns
    start_batches: int = Field(default=50, ge=1)  # batches for initialisation by principal components and k-means
    log_every: int = Field(default=50, ge=1)
    valid_every: int = Field(default=1000, ge=1)
    valid_batches: int = Field(default=8, ge=1)
    save_every: int = Field(default=500, ge=1)
    seed: Seed = 0

    @model_validator(mode="after")
    def _one_frame(self) -> Self:
        rate, hop = self.network.sample_rate, self.network.hop
        if round(self.seconds * rate) < hop:
            raise ValueError(f"seconds={self.seconds:g}: less than one frame; give {hop / rate:g} or more")
        return self


def train_codec(config: CodecTrainConfig, crops: Crops, run: Run, fabric: Fabric, valid: Crops | None = None) -> Codec:
    """Train a codec and return it, with averaged weights, in eval mode. `crops` are at the codec's sample rate.

    Data parallel if there are several processes; the codebooks' moving averages are over all processes' frames.
    """
    torch.manual_seed(config.seed)
    codec = Codec(config.network)
    average = Codec(config.network).requires_grad_(False).eval().to(fabric.device)
    critics = Discriminators(channels=config.discriminator_channels)
    if not config.train_encoder:
        codec.freeze_encoder()
    if not run.steps():
        with run.unguarded(), run.progress(config.network.num_codebooks, label="codec's start") as show:
            codec.start(torch.cat([crops.batch(index) for index in range(config.start_batches)]), config.seed, show)
    model, critic_model = fabric.setup_module(codec), fabric.setup_module(critics)
    average.load_state_dict(codec.state_dict())
    trained = [parameter for parameter in codec.parameters() if parameter.requires_grad]
    optimizer: Any = torch.optim.AdamW(trained, config.lr, (0.8, 0.99), weight_decay=config.weight_decay)
    critic_optimizer: Any = torch.optim.AdamW(critics.parameters(), config.discriminator_lr, (0.5, 0.9))
    state = {
        "codec": codec, "average": average, "critics": critics,
        "optimizer": optimizer, "critic_optimizer": critic_optimizer,
    }  # fmt: skip
    start = run.resume(state)
    optimizer, critic_optimizer = (fabric.setup_optimizers(each) for each in (optimizer, critic_optimizer))
    critic_from, few = int(config.adversarial_from * config.steps), slice(0, config.discriminator_batch)
    hours_a_step = fabric.world_size * config.accumulate * config.batch_size * config.seconds / 3600
    line_began, line_from = time.monotonic(), start
    with run.progress(config.steps, start) as show:
        for step in range(start + 1, config.steps + 1):
            rate = learning_rate(step, config.lr, config.steps, config.warmup, config.floor)
            for group in optimizer.param_groups:
                group["lr"] = rate
            heard: list[tuple[Tensor, Tensor]] = []  # real and reconstructed crops for the critics
            losses, total = dict[str, Tensor](), torch.zeros(())
            for index, seed in batches_of(step, config.accumulate, config.seed, fabric, model):
                audio, keep = prepare(crops.batch(index), config, Generator().manual_seed(seed))
                audio, keep = fabric.to_device(audio), fabric.to_device(keep)
                sound, losses = model.train()(audio, keep)
                losses["mel"] = mel_loss(sound, audio, codec.sample_rate)
                losses["spectrum"], losses["magnitude"] = spectral_losses(sound, audio, config.windows)
                if step > critic_from:
                    heard.append((audio[few], sound[few].detach()))
                    # The unwrapped critics: DDP would wait for gradients that they must not receive here.
                    critics.requires_grad_(False)
                    with fabric.autocast():
                        judged = generator_losses(critics(audio[few]), critics(sound[few]))
                    losses["adversarial"], losses["matching"] = judged
                    critics.requires_grad_(True)
                total = torch.stack([getattr(config.weights, name) * loss for name, loss in losses.items()]).sum()
                fabric.backward(total / config.accumulate)
            losses["norm"] = clip(fabric, model, optimizer, config.clip)
            optimizer.step()
            optimizer.zero_grad()
            for part, (real, fake) in enumerate(heard, 1):
                with fabric.no_backward_sync(critic_model, enabled=part < config.accumulate):
                    losses["critics"] = discriminator_loss(critic_model(real), critic_model(fake))
                    fabric.backward(losses["critics"] / config.accumulate)
            if heard:
                losses["critics_norm"] = clip(fabric, critic_model, critic_optimizer, config.clip)
                critic_optimizer.step()
                critic_optimizer.zero_grad()
            follow(average, codec, min(config.ema, step / (step + 10)))

            if step % config.log_every == 0:
                run.check(step, loss=total, norm=losses["norm"])
                shown = {name: loss.detach() for name, loss in losses.items()}
                speed = 3600 * hours_a_step * (step - line_from) / (time.monotonic() - line_began)
                line_began, line_from = time.monotonic(), step
                run.log(step, loss=total.detach(), **shown, lr=rate, hours=step * hours_a_step, audio_per_second=speed)
                show(step, **shown)
            score = None
            if valid is not None and (step % config.valid_every == 0 or step == config.steps):
                figures = validate(average, valid, config.valid_batches, config.windows)
                score = figures[f"valid_mel_{codec.spec.num_codebooks}"]
                run.log(step, **figures)
            if run.listening(step):
                run.listen(step, reconstructions(average, crops if valid is None else valid))
            run.checkpoint(step, state, config.save_every, config.steps, score, norm=losses["norm"])
    return average


def prepare(audio: Tensor, config: CodecTrainConfig, generator: Generator) -> tuple[Tensor, Tensor]:
    """Crops (B, 1, T) with a random gain that never clips, and the number of levels each uses (B,): quantizer dropout."""
    batch = len(audio)
    decibels = config.gain * (2 * torch.rand(batch, 1, 1, generator=generator) - 1)
    room = 0.99 / audio.abs().amax(-1, keepdim=True).clamp_min(1e-3)
    audio = audio * torch.minimum(10 ** (decibels / 20), room.clamp_min(1.0))
    levels = config.network.num_codebooks
    keep = torch.randint(1, levels + 1, (batch,), generator=generator)
    full = torch.rand(batch, generator=generator) >= config.dropout
    return audio, torch.where(full, levels, keep)


@torch.no_grad()
def validate(codec: Codec, valid: Crops, batches: int, windows: Sequence[int]) -> dict[str, float | Tensor]:
    """Losses with all levels and with a third of them; for each level, the share of codes used and the residual energy."""
    with random_untouched():
        device = next(codec.parameters()).device
        audio = torch.cat([valid.batch(index) for index in range(batches)]).to(device)
        latents = codec.latents(audio)
        codes = codec.quantizer.encode(latents)
        result: dict[str, float | Tensor] = {}
        for levels in (max(1, codes.shape[1] // 3), codes.shape[1]):
            sound = codec.decode(codes[:, :levels])[..., : audio.shape[-1]]
            result[f"valid_mel_{levels}"] = mel_loss(sound, audio, codec.sample_rate)
            result[f"valid_spectrum_{levels}"], result[f"valid_magnitude_{levels}"] = spectral_losses(sound, audio, windows)
        for level, energy in enumerate(residual_energy(codec.quantizer, latents), 1):
            result[f"energy_{level}"] = energy
            result[f"usage_{level}"] = len(codes[:, level - 1].unique()) / codec.spec.codebook_size
    return result


@torch.no_grad()
def reconstructions(codec: Codec, crops: Crops, count: int = 3) -> dict[str, Waveform]:
    """The first crops: the originals, and their reconstructions with all levels."""
    audio = crops.batch(0)[:count].to(next(codec.parameters()).device)
    sounds = {"original": audio, "reconstruction": codec.decode(codec.encode(audio))[..., : audio.shape[-1]]}
    return {
        f"{name}-{number}": Waveform(sound.float().cpu(), codec.sample_rate)
        for name, batch in sounds.items()
        for number, sound in enumerate(batch, 1)
    }
