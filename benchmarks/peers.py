"""One measurement of a peer, in its own environment, for benchmarks/generation.py. Prints one JSON object.

    PYTHON benchmarks/peers.py llama 6x512 semantic 1 5       tokens per second at batch 1; the numbers: threads, repeats
    PYTHON benchmarks/peers.py audiolm-pytorch 6x512 coarse 1 5
    PYTHON benchmarks/peers.py audiocraft 6x512 - 1 5         MusicGen's language model, four codebooks per step
    PYTHON benchmarks/peers.py encodec|mimi|dac - - 1 5       speed of encoding and decoding 10 s, times real time

All weights are random float32, in the peers' default shapes at the given depth and width. Does not import audiolm.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from unittest.mock import MagicMock

import torch

SHAPES = {"6x512": (6, 512, 8, 1368), "12x1024": (12, 1024, 16, 2736)}  # layers, width, heads, feed-forward width
SECONDS = 10  # of audio for codecs
TOKENS = {"6x512": 200, "12x1024": 60}


def median(run: Callable[[], object], repeats: int) -> float:
    """Median seconds, after a warm-up run."""
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def llama(shape: str, repeats: int) -> dict[str, float]:
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    layers, width, heads, ffn = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=1024, hidden_size=width, intermediate_size=ffn, num_hidden_layers=layers, num_attention_heads=heads,
        max_position_embeddings=4096,
    )  # fmt: skip
    model, prompt = LlamaForCausalLM(config).eval(), torch.randint(1024, (1, 8))
    count = TOKENS[shape]
    settings = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": True, "top_k": 100, "pad_token_id": 0}
    seconds = median(lambda: model.generate(prompt, **settings), repeats)
    return {"tokens_per_second": count / seconds, "parameters": sum(each.numel() for each in model.parameters())}


def audiolm_pytorch(shape: str, stage: str, repeats: int) -> dict[str, float]:
    """Without `flash_attn`, whose cached steps attend to the first key only (they differ from uncached ones by more than 1)."""
    for name in (
        *("torchaudio", "torchaudio.functional", "torchaudio.transforms", "fairseq", "wandb", "transformers", "encodec"),
        *("accelerate", "accelerate.utils", "encodec.utils", "audiolm_pytorch.trainer", "audiolm_pytorch.data"),
    ):
        sys.modules.setdefault(name, MagicMock())  # not used in generation
    from audiolm_pytorch import audiolm_pytorch as peer

    peer.get_encoded_dim = lambda name: 768
    peer.all_rows_have_eos_id = lambda ids, eos: False  # random weights must not end early
    peer.tqdm = lambda steps, **_: steps
    layers, width, heads, _ = SHAPES[shape]
    sizes, count = {"dim": width, "depth": layers, "heads": heads, "flash_attn": False}, TOKENS[shape]
    levels = peer.SoundStream.__new__(peer.SoundStream)  # generation only reads the two attributes set below
    torch.nn.Module.__init__(levels)
    levels.rq_groups, levels.num_quantizers = 1, 12
    if stage == "semantic":
        network = peer.SemanticTransformer(num_semantic_tokens=1024, **sizes)
        wrapped = peer.SemanticTransformerWrapper(transformer=network, unique_consecutive=False).eval()
        run = lambda: wrapped.generate(max_length=TOKENS[shape])  # noqa: E731
    elif stage == "coarse":
        network = peer.CoarseTransformer(codebook_size=1024, num_coarse_quantizers=4, num_semantic_tokens=1024, **sizes)
        wrapped = peer.CoarseTransformerWrapper(transformer=network, codec=levels, unique_consecutive=False).eval()
        semantic = torch.randint(1024, (1, 150))
        run = lambda: wrapped.generate(semantic_token_ids=semantic, max_time_steps=count // 4)  # noqa: E731
    else:
        network = peer.FineTransformer(codebook_size=1024, num_coarse_quantizers=4, num_fine_quantizers=8, **sizes)
        wrapped = peer.FineTransformerWrapper(transformer=network, codec=levels).eval()
        coarse = torch.randint(1024, (1, count // 8, 4))
        run = lambda: wrapped.generate(coarse_token_ids=coarse)  # noqa: E731
        count = count // 8 * 8
    with torch.no_grad():
        seconds = median(run, repeats)
    return {"tokens_per_second": count / seconds, "parameters": sum(each.numel() for each in network.parameters())}


def audiocraft(shape: str, repeats: int) -> dict[str, float]:
    """MusicGen's language model, without text: each step makes one code for each of four codebooks."""
    unused = "av av.subtitles demucs encodec julius librosa librosa.filters spacy torchaudio torchaudio.functional "
    unused += "torchaudio.transforms torchdiffeq torchmetrics transformers hydra_colorlog flashy flashy.distrib "
    for name in (unused + "audiocraft.solvers audiocraft.solvers.compression xformers xformers.ops").split():
        sys.modules.setdefault(name, MagicMock())
    sys.modules["xformers"].ops.unbind = torch.unbind  # all it uses of xformers with torch's attention, its default
    from audiocraft.models.lm import LMModel
    from audiocraft.modules.codebooks_patterns import DelayedPatternProvider
    from audiocraft.modules.conditioners import ConditionFuser, ConditioningProvider

    layers, width, heads, _ = SHAPES[shape]
    fuser = ConditionFuser({"sum": [], "cross": [], "prepend": [], "input_interpolate": []})
    model = LMModel(
        DelayedPatternProvider(4), ConditioningProvider({}), fuser, n_q=4, card=1024, dim=width, num_heads=heads, hidden_scale=4,
        norm="layer_norm", norm_first=True, num_layers=layers, causal=True, bias_ff=False, bias_attn=False, bias_proj=False,
        custom=False, memory_efficient=True, attention_as_float32=False, cross_attention=False, positional_embedding="sin",
    ).eval()  # fmt: skip
    count = TOKENS[shape]
    with torch.no_grad():
        seconds = median(lambda: model.generate(None, [], num_samples=1, max_gen_len=count, cfg_coef=1.0), repeats)
    return {"tokens_per_second": 4 * count / seconds, "parameters": sum(each.numel() for each in model.parameters())}


def codec(name: str, repeats: int) -> dict[str, float]:
    import transformers

    kinds = {"encodec": "Encodec", "mimi": "Mimi", "dac": "Dac"}
    config = getattr(transformers, kinds[name] + "Config")()
    model = getattr(transformers, kinds[name] + "Model")(config).eval()
    sound = torch.randn(1, 1, int(SECONDS * config.sampling_rate)) * 0.1
    with torch.no_grad():
        encoded = model.encode(sound)
        if name == "encodec":
            decode = lambda: model.decode(encoded.audio_codes, encoded.audio_scales)  # noqa: E731
        else:
            decode = lambda: model.decode(audio_codes=encoded.audio_codes)  # noqa: E731
        return {
            "encode": SECONDS / median(lambda: model.encode(sound), repeats),
            "decode": SECONDS / median(decode, repeats),
            "parameters": sum(each.numel() for each in model.parameters()),
        }


def main() -> None:
    name, shape, stage, threads, repeats = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if name == "llama":
        result = llama(shape, repeats)
    elif name == "audiolm-pytorch":
        result = audiolm_pytorch(shape, stage, repeats)
    elif name == "audiocraft":
        result = audiocraft(shape, repeats)
    else:
        result = codec(name, repeats)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
