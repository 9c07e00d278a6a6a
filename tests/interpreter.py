"""Triton's interpreter, without work that it does again and again: less than half of its time is left, on our kernels."""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from triton.language import core
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter


def quicken() -> None:
    """Have it find out once what it asks again with each operation of each program.

    An overflow of integers that are added or multiplied is only looked for with KERNEL_CASES=all, as in `make test-long`: it
    makes twelve operations of each, and offsets are what kernels compute most.
    """
    _patch_once_a_launch()
    _know_types()
    _know_shapes()
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=os.environ.get("KERNEL_CASES") == "all")


def _patch_once_a_launch() -> None:
    """`triton.language` is patched once a launch for the functions of a module that a kernel calls, in place of once a call."""
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


def _know_types() -> None:
    """A type is made once, not with each value; so is numpy's type of it, and the type in which two are computed."""
    made: dict[Any, Any] = {}
    sizes: dict[Any, Any] = {}
    make: Callable[..., None] = core.block_type.__init__

    def new(cls: Any, element_ty: Any, shape: Any) -> Any:
        if element_ty.is_ptr():  # has no hash, and each launch has its own
            return object.__new__(cls)
        key = element_ty, tuple([getattr(size, "value", size) for size in shape])
        known = made.get(key)
        if known is None:
            known = made[key] = object.__new__(cls)
        return known

    def init(self: Any, element_ty: Any, shape: Any) -> None:
        if "numel" not in self.__dict__:
            make(self, element_ty, shape)
            self.shape = sizes.setdefault(self.shape, self.shape)

    core.block_type.__new__ = new
    core.block_type.__init__ = init

    arrays: dict[str, Any] = {}
    array_type: Callable[[Any], Any] = interpreter._get_np_dtype

    def known_array_type(kind: Any) -> Any:
        if kind.scalar.is_ptr():
            return array_type(kind)
        name = kind.scalar.name
        if name not in arrays:
            arrays[name] = array_type(kind)
        return arrays[name]

    interpreter._get_np_dtype = known_array_type

    computed: dict[Any, Any] = {}
    computation_type: Callable[..., Any] = TritonSemantic.computation_type_impl

    def known_computation_type(self: Any, *operands: Any) -> Any:
        if operands not in computed:
            computed[operands] = computation_type(self, *operands)
        return computed[operands]

    TritonSemantic.computation_type_impl = known_computation_type


def _know_shapes() -> None:
    """The shape of a value, as constants, is made once for all values of that shape; two of one shape are not compared by size."""
    shapes: dict[Any, Any] = {}
    make: Callable[..., None] = core.tensor.__init__

    def init(self: Any, handle: Any, type: Any) -> None:
        shape = type.shape if type.is_block() else ()
        known = shapes.get(shape)
        if known is None:
            make(self, handle, type)
            shapes[shape] = self.shape, self.numel
        else:
            self.handle, self.type, self.dtype = handle, type, type.scalar
            self.shape, self.numel = known

    core.tensor.__init__ = init

    broadcast: Callable[..., Any] = TritonSemantic.broadcast_impl_value

    def known_broadcast(self: Any, left: Any, right: Any) -> Any:
        return (left, right) if left.shape is right.shape else broadcast(self, left, right)

    TritonSemantic.broadcast_impl_value = known_broadcast
