"""The three bodies of the codec: encoder and decoder between audio and the latents that are quantised.

`WaveformBody` is the paper's: strided causal convolutions on samples. The other two have no layer at 16 kHz, so that they
can be trained on a CPU. `SpectralBody` starts from the principal components of spectra: while its networks output zero it is
a transform codec, and training improves on that. `VocoderBody` codes how loud each band is and leaves the phase to its
decoder, which generates it for speech and continues tones for music. At this bit rate it is the best by far
(docs/training-log.md), and its codes change slowly, which suits language models; but its output only sounds like the
recording and does not match its waveform.

Streaming keeps state instead of padding. Offline use is a single push through the same code. A body whose sound lags behind its
codes has `close`, which returns the last `lag` samples. `memory` is how many earlier frames the sound of a frame depends on,
apart from phases that are continued.
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
