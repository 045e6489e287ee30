"""Model files: where they lie, what they say, tensors, tokenizers, and whether a pair fits.

In: presets and repositories. Out: weights, tokenizers, facts. It does not know requests or screens.
"""
