"""Model files: where they are, what they say, tensors, tokenizers, and whether a pair fits."""
