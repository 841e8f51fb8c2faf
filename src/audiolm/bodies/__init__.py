"""The three bodies of the codec: between sound and the latents that its quantiser sees.

`WaveformBody` is the paper's: strided causal convolutions on samples. The other two have no layer at 16 kHz, so that they
train on a processor. `SpectralBody` starts as the principal components of spectra: with its networks still silent it is a
transform codec, and training improves on that. `VocoderBody` codes how loud each band is and leaves the phase to its
decoder, which invents it for speech and lets tones go on for music: at this few bits the best by far
(docs/training-log.md), and what its codes say changes slowly, which suits language models; but the sound is no longer the
recording's wave, only its like.

Streaming keeps state instead of padding. Offline is one push through the same code.
"""

from audiolm.bodies.config import CodecConfig
from audiolm.bodies.layers import State
from audiolm.bodies.spectral import SpectralBody
from audiolm.bodies.vocoder import VocoderBody
from audiolm.bodies.waveform import WaveformBody

__all__ = ["BODIES", "CodecConfig", "State"]

BODIES: dict[str, type[SpectralBody] | type[VocoderBody] | type[WaveformBody]] = {
    "spectral": SpectralBody,
    "vocoder": VocoderBody,
    "waveform": WaveformBody,
}
