"""Without a GPU the kernels run in Triton's interpreter, which must be chosen before its import."""

import os
import sys

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    # Newer transformers import Triton by way of torch.compile; have it imported once more.
    for name in [name for name in sys.modules if name.split(".")[0] == "triton"]:
        if not name.startswith("triton._C"):  # an extension module loads only once
            del sys.modules[name]

    from triton.runtime import interpreter

    _patch = interpreter._patch_lang_tensor

    def _patch_with_bounds(tensor: type, scope: interpreter._LangPatchScope) -> None:
        """NumPy 2.4 refuses to make a loop's bound of the interpreter's array of one element."""
        _patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = _patch_with_bounds
