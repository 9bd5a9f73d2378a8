"""Liger's kernels on the CPU, in Triton's interpreter, which is slow and exact.

Two things of a compiled kernel are missing there, and are added: a number with a fraction becomes a
value of Triton, and the root of libdevice has a result. The names of both are private.
"""

import os
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy
import pytest

HAS_LIGER = find_spec("liger_kernel") is not None and find_spec("triton") is not None
# tests/conftest.py sets it where there is no GPU; tests/gpu compiles the same kernels.
CAN_INTERPRET = HAS_LIGER and os.environ.get("TRITON_INTERPRET") == "1"
MISSING = "needs liger-kernel and triton (pip install 'llada-sft[liger]'), and no GPU"


def interpret_triton(patch: pytest.MonkeyPatch) -> None:
    """Let Liger's kernels run on CPU tensors in this process."""
    interpreter: Any = import_module("triton.runtime.interpreter")
    language: Any = import_module("triton.language")
    convert = interpreter._implicit_cvt

    def converted(value: Any) -> Any:
        if not isinstance(value, float):
            return convert(value)
        handle = interpreter.TensorHandle(numpy.array([value], numpy.float32), language.float32)
        return language.tensor(handle, language.float32)

    patch.setattr(interpreter, "_implicit_cvt", converted)
    norms: Any = import_module("liger_kernel.ops.rms_norm")
    patch.setattr(norms, "rsqrt", lambda x: 1 / language.sqrt(x))
