"""Triton's interpreter, without work that it does again and again, and with products of which no row depends on another."""

from collections.abc import Callable
from typing import Any

import numpy as np
from triton.runtime import interpreter


def quicken() -> None:
    """Have it patch `triton.language` once a launch for the functions of a module that a kernel calls, in place of once a call: a
    quarter of its time, on our kernels."""
    patched: set[int] = set()
    launch: Callable[..., Any] = interpreter.GridExecutor.__call__

    def launch_anew(self: Any, *args: Any, **kwargs: Any) -> Any:
        patched.clear()
        return launch(self, *args, **kwargs)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if id(self.fn.__globals__) not in patched:
            patched.add(id(self.fn.__globals__))
            interpreter._patch_lang(self.fn)
        try:
            return self.rewrite()(*args, **kwargs)
        except Exception as error:
            raise interpreter.InterpreterError(repr(error)) from error

    interpreter.GridExecutor.__call__ = launch_anew
    interpreter.InterpretedFunction.__call__ = call


def steady_products() -> None:
    """Have it add products up in fp64. numpy's library takes rows at the edge of a matrix by other code, on some processors with
    another order of additions: there the last bit of a row depended on how many are computed with it, as on no GPU."""
    dot: Callable[..., Any] = interpreter.InterpreterBuilder.create_dot

    def wide_dot(self: Any, a: Any, b: Any, d: Any, *args: Any) -> Any:
        if not np.issubdtype(d.data.dtype, np.floating):
            return dot(self, a, b, d, *args)
        out = dot(self, a, b, interpreter.TensorHandle(d.data.astype(np.float64), d.dtype), *args)
        return interpreter.TensorHandle(out.data.astype(d.data.dtype), out.dtype)

    interpreter.InterpreterBuilder.create_dot = wide_dot
