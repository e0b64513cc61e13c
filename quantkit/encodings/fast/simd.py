"""Vectors of ``LANES`` numbers for numba: one block per lane, each computing as a scalar would.

numba's own vectorizer decides by itself whether a loop becomes vector code, and never turns a sum
into lanes without leave to reorder it. Here a value *is* a vector: ``a + b`` on two ``F32`` vectors
is one LLVM ``fadd <32 x float>``, without any fast-math flag, so that every lane rounds exactly as
plain C does on a baseline x86-64, whatever instructions LLVM picks for this processor.

Vectors are only values inside compiled functions: they are loaded from and stored to float32 and
int32 arrays. Comparisons give masks, for ``select``, ``&``, ``|`` and ``any_lane``.
"""

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import (
    intrinsic,
    lower_builtin,
    models,
    register_model,
    type_callable,
)

LANES = 32


class Vector(types.Type):
    """numba's type of a vector; ``kind`` is ``f32``, ``i32`` or ``mask``."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        super().__init__(name=f"{kind}x{LANES}")


F32, I32, MASK = Vector("f32"), Vector("i32"), Vector("mask")
_LANE = {"f32": ir.FloatType(), "i32": ir.IntType(32), "mask": ir.IntType(1)}
_LLVM = {kind: ir.VectorType(lane, LANES) for kind, lane in _LANE.items()}


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Vector) -> None:
        super().__init__(dmm, fe_type, _LLVM[fe_type.kind])


def _widest(builder: Any) -> None:
    """Let this function use 512-bit registers where there are any.

    LLVM halves vectors on processors that it believes to clock down, unless a function says that
    it needs the width. llvmlite knows no such attribute by name, hence the plain ``set.add``.
    """
    set.add(builder.function.attributes, '"min-legal-vector-width"="512"')


def _binary(op: Callable[..., Any], methods: dict[str, str]) -> None:
    """Give ``op`` a meaning on two vectors of the same kind: kind -> IRBuilder method."""

    @type_callable(op)
    def _type(context: Any) -> Any:
        def typer(a: Any, b: Any) -> Any:
            return a if isinstance(a, Vector) and a == b and a.kind in methods else None

        return typer

    @lower_builtin(op, Vector, Vector)
    def _lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return getattr(builder, methods[sig.args[0].kind])(*args)


def _comparison(op: Callable[..., Any], sign: str) -> None:
    @type_callable(op)
    def _type(context: Any) -> Any:
        def typer(a: Any, b: Any) -> Any:
            return MASK if isinstance(a, Vector) and a == b and a.kind != "mask" else None

        return typer

    @lower_builtin(op, Vector, Vector)
    def _lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if sig.args[0].kind == "i32":
            return builder.icmp_signed(sign, *args)
        # Any comparison with a NaN is false, but for !=, as in C.
        compare = builder.fcmp_unordered if sign == "!=" else builder.fcmp_ordered
        return compare(sign, *args)


_binary(operator.add, {"f32": "fadd", "i32": "add"})
_binary(operator.sub, {"f32": "fsub", "i32": "sub"})
_binary(operator.mul, {"f32": "fmul", "i32": "mul"})
_binary(operator.truediv, {"f32": "fdiv"})
_binary(operator.and_, {"i32": "and_", "mask": "and_"})
_binary(operator.or_, {"i32": "or_", "mask": "or_"})
_binary(operator.lshift, {"i32": "shl"})
_binary(operator.rshift, {"i32": "lshr"})
for _op, _sign in (
    (operator.lt, "<"),
    (operator.le, "<="),
    (operator.gt, ">"),
    (operator.ge, ">="),
    (operator.eq, "=="),
    (operator.ne, "!="),
):
    _comparison(_op, _sign)


def _element(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    array = context.make_array(sig.args[0])(context, builder, args[0])
    return builder.gep(array.data, [args[1]])


def _accepts(array: Any, index: Any) -> Vector:
    if not isinstance(array, types.Array) or not isinstance(index, types.Integer):
        raise TypeError("vectors lie in arrays, at an integer index")
    return {types.float32: F32, types.int32: I32}[array.dtype]


@intrinsic
def load(typingctx: Any, array: Any, index: Any) -> Any:
    """The vector at ``array[index : index + LANES]``, float32 or int32."""
    vector = _accepts(array, index)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _widest(builder)
        pointer = builder.bitcast(
            _element(context, builder, sig, args), _LLVM[vector.kind].as_pointer()
        )
        return builder.load(pointer, align=4)

    return vector(array, types.intp), codegen


@intrinsic
def store(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """Store a vector at ``array[index : index + LANES]``."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = builder.bitcast(
            _element(context, builder, sig, args), _LLVM[value.kind].as_pointer()
        )
        builder.store(args[2], pointer, align=4)
        return context.get_dummy_value()

    if _accepts(array, index) != value:
        raise TypeError("array and vector are of different kinds")
    return types.void(array, types.intp, value), codegen


def _splat(builder: Any, value: Any, kind: str) -> Any:
    vector = builder.insert_element(
        ir.Constant(_LLVM[kind], ir.Undefined), value, ir.Constant(ir.IntType(32), 0)
    )
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(vector, ir.Constant(_LLVM[kind], ir.Undefined), lanes)


@intrinsic
def f32(typingctx: Any, value: Any) -> Any:
    """A vector with the same number, rounded to float32, in every lane."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _splat(builder, args[0], "f32")

    return F32(types.float32), codegen


@intrinsic
def i32(typingctx: Any, value: Any) -> Any:
    """A vector with the same integer in every lane."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _splat(builder, args[0], "i32")

    return I32(types.int32), codegen


@intrinsic
def select(typingctx: Any, mask: Any, yes: Any, no: Any) -> Any:
    """Per lane ``yes`` where the mask is set, else ``no``."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(*args)

    if mask != MASK or yes != no or not isinstance(yes, Vector):
        raise TypeError("select(mask, vector, vector of the same kind)")
    return yes(mask, yes, no), codegen


@intrinsic
def any_lane(typingctx: Any, mask: Any) -> Any:
    """Whether the mask is set in any lane."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = builder.bitcast(args[0], ir.IntType(LANES))
        return builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0))

    return types.boolean(MASK), codegen


def _unary(name: str, takes: Vector, gives: Vector, emit: Callable[[Any, Any], Any]) -> Any:
    def typed(typingctx: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return emit(builder, args[0])

        if value != takes:
            raise TypeError(f"{name} takes a vector of {takes.kind}")
        return gives(value), codegen

    typed.__name__ = typed.__qualname__ = name
    return intrinsic(typed)


def _llvm_function(name: str) -> Callable[[Any, Any], Any]:
    def emit(builder: Any, value: Any) -> Any:
        kind = ir.FunctionType(value.type, [value.type])
        function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{LANES}f32")
        return builder.call(function, [value])

    return emit


sqrt = _unary("sqrt", F32, F32, _llvm_function("sqrt"))
absolute = _unary("absolute", F32, F32, _llvm_function("fabs"))
negative = _unary("negative", F32, F32, lambda b, v: b.fneg(v))  # 0 - x is not -0 for 0
bits_of = _unary("bits_of", F32, I32, lambda b, v: b.bitcast(v, _LLVM["i32"]))
from_bits = _unary("from_bits", I32, F32, lambda b, v: b.bitcast(v, _LLVM["f32"]))
to_int = _unary("to_int", F32, I32, lambda b, v: b.fptosi(v, _LLVM["i32"]))
to_float = _unary("to_float", I32, F32, lambda b, v: b.sitofp(v, _LLVM["f32"]))
