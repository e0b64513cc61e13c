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
NARROW = 8
_LANE = {"f32": ir.FloatType(), "i32": ir.IntType(32), "mask": ir.IntType(1)}


class Vector(types.Type):
    """numba's type of a vector; ``kind`` is ``f32``, ``i32`` or ``mask``."""

    def __init__(self, kind: str, lanes: int) -> None:
        self.kind = kind
        self.lanes = lanes
        self.llvm = ir.VectorType(_LANE[kind], lanes)
        super().__init__(name=f"{kind}x{lanes}")


F32, I32, MASK = Vector("f32", LANES), Vector("i32", LANES), Vector("mask", LANES)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Vector) -> None:
        super().__init__(dmm, fe_type, fe_type.llvm)


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
            if not isinstance(a, Vector) or a != b or a.kind == "mask":
                return None
            return Vector("mask", a.lanes)

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


def _accepts(array: Any, index: Any, lanes: int) -> Vector:
    if not isinstance(array, types.Array) or not isinstance(index, types.Integer):
        raise TypeError("vectors lie in arrays, at an integer index")
    return Vector({types.float32: "f32", types.int32: "i32"}[array.dtype], lanes)


def _load_of(lanes: int) -> Any:
    def load(typingctx: Any, array: Any, index: Any) -> Any:
        vector = _accepts(array, index, lanes)

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            _widest(builder)
            element = _element(context, builder, sig, args)
            return builder.load(builder.bitcast(element, vector.llvm.as_pointer()), align=4)

        return vector(array, types.intp), codegen

    return intrinsic(load)


def _store_of(lanes: int) -> Any:
    def store(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            element = _element(context, builder, sig, args)
            builder.store(args[2], builder.bitcast(element, value.llvm.as_pointer()), align=4)
            return context.get_dummy_value()

        if _accepts(array, index, lanes) != value:
            raise TypeError("array and vector are of different kinds")
        return types.void(array, types.intp, value), codegen

    return intrinsic(store)


# The vector at ``array[index : index + LANES]``, float32 or int32, and how to store it there.
load, store = _load_of(LANES), _store_of(LANES)
narrow_load, narrow_store = _load_of(NARROW), _store_of(NARROW)


def _splat(builder: Any, value: Any, vector: Vector) -> Any:
    undefined = ir.Constant(vector.llvm, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), vector.lanes), [0] * vector.lanes)
    return builder.shuffle_vector(first, undefined, zeros)


def _splat_of(vector: Vector) -> Any:
    scalar = {"f32": types.float32, "i32": types.int32}[vector.kind]

    def splat(typingctx: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return _splat(builder, args[0], vector)

        return vector(scalar), codegen

    return intrinsic(splat)


# A vector with the same number, rounded to float32, or the same integer in every lane.
f32, i32 = _splat_of(F32), _splat_of(I32)
narrow_f32, narrow_i32 = _splat_of(Vector("f32", NARROW)), _splat_of(Vector("i32", NARROW))


@intrinsic
def narrow_gather(typingctx: Any, array: Any, index: Any, stride: Any) -> Any:
    """The narrow vector of ``array[index]``, ``array[index + stride]`` and so on."""
    vector = _accepts(array, index, NARROW)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value, at = ir.Constant(vector.llvm, ir.Undefined), args[1]
        array = context.make_array(sig.args[0])(context, builder, args[0])
        for lane in range(NARROW):
            element = builder.load(builder.gep(array.data, [at]))
            value = builder.insert_element(value, element, ir.Constant(ir.IntType(32), lane))
            at = builder.add(at, args[2])
        return value

    return vector(array, types.intp, types.intp), codegen


@intrinsic
def transpose(
    typingctx: Any, source: Any, at: Any, stride: Any, target: Any, to: Any, target_stride: Any
) -> Any:
    """Exchange rows and columns of ``NARROW`` times ``NARROW`` elements.

    Row ``i`` lies at ``source[at + i * stride]``, column ``i`` comes to
    ``target[to + i * target_stride]``.
    """
    vector = _accepts(source, at, NARROW)
    if vector != _accepts(target, to, NARROW):
        raise TypeError("source and target are of different kinds")

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        def row_of(array: Any, at: Any, stride: Any, row: int) -> Any:
            at = builder.add(at, builder.mul(stride, ir.Constant(stride.type, row)))
            return builder.bitcast(builder.gep(array.data, [at]), vector.llvm.as_pointer())

        source = context.make_array(sig.args[0])(context, builder, args[0])
        target = context.make_array(sig.args[3])(context, builder, args[3])
        rows = [builder.load(row_of(source, args[1], args[2], i), align=4) for i in range(NARROW)]
        halfway = NARROW // 2
        for _ in range(NARROW.bit_length() - 1):  # each takes one bit of the row into the column
            pairs = zip(rows[:halfway], rows[halfway:], strict=True)
            rows = [_interleaved(builder, *pair, part) for pair in pairs for part in (0, halfway)]
        for i, row in enumerate(rows):
            builder.store(row, row_of(target, args[4], args[5], i), align=4)
        return context.get_dummy_value()

    place = types.intp
    return types.void(source, place, place, target, place, place), codegen


def _interleaved(builder: Any, a: Any, b: Any, first: int) -> Any:
    """Elements of both in turn, from the first on."""
    lanes = [i + which * NARROW for i in range(first, first + NARROW // 2) for which in (0, 1)]
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), NARROW), lanes))


@intrinsic
def select(typingctx: Any, mask: Any, yes: Any, no: Any) -> Any:
    """Per lane ``yes`` where the mask is set, else ``no``."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(*args)

    if yes != no or not isinstance(yes, Vector) or mask != Vector("mask", yes.lanes):
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
bits_of = _unary("bits_of", F32, I32, lambda b, v: b.bitcast(v, I32.llvm))
from_bits = _unary("from_bits", I32, F32, lambda b, v: b.bitcast(v, F32.llvm))
to_int = _unary("to_int", F32, I32, lambda b, v: b.fptosi(v, I32.llvm))
to_float = _unary("to_float", I32, F32, lambda b, v: b.sitofp(v, F32.llvm))
