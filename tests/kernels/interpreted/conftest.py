"""Kernels run by Triton's interpreter, which decides when it is imported."""

import os

os.environ["TRITON_INTERPRET"] = "1"
