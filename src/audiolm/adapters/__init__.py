"""Tokenizers of others: one file for each kind, the only one that knows the third-party class behind it.

    dac       DAC as a `Codec` (Kumar et al. 2023)
    hubert    HuBERT, WavLM and wav2vec 2.0 as encoders of a `SemanticTokenizer`
    taken     what both share: reading the configuration and weights of a folder in the form of transformers

Each is a configuration, which a bundle's config.json holds, and a network built from it. Their weights are read once, when a
recipe takes them; from then on they lie in the run's and the bundle's own files. transformers is imported by these files
alone, and only when such a network is built.
"""
