"""The core: tensors in, tensors out. It knows no file, network, tokenizer or screen.

Shape letters used everywhere: ``n`` rows of a forward (tree nodes), ``L`` layers, ``H`` query
heads, ``Hkv`` key/value heads, ``D`` head width, ``S`` committed rows, ``V`` vocabulary.
"""
