"""The bundled pair `pocket`: weights, tokenizer, model card, and the programs that made them.

`tokenizer` trains the vocabulary, `corpus` turns the training files into token arrays, `tasks`
writes training sequences, `train` trains the target, the draft and the EAGLE heads. Nothing outside
this package imports these programs; the rest of specx reads only the weights and the tokenizer.
"""
