"""Triton's interpreter for everything in this folder: it has to be chosen before a kernel is decorated."""

import os

os.environ["TRITON_INTERPRET"] = "1"
