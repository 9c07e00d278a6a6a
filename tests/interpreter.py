"""Triton's interpreter, without work that it does again and again: a quarter of its time, on our kernels."""

from collections.abc import Callable
from typing import Any

from triton.runtime import interpreter


def quicken() -> None:
    """Have it patch `triton.language` once a launch for the functions of a module that a kernel calls, in place of once a call."""
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
