"""The grid points nearest to groups of weights, among those that may be.

Points lie in lanes: a vector holds ``FEW`` of each of several groups, of neighbouring blocks.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from quantkit.encodings.fast.grids import FEW, ON_GRID
from quantkit.encodings.fast.jit import compiled, inlined
from quantkit.encodings.fast.simd import LANES

WIDTH = 16  # points in a vector
_HALF, _WORD, _FLOAT = ir.IntType(16), ir.IntType(32), ir.FloatType()
_WORDS, _FLOATS = ir.VectorType(_WORD, WIDTH), ir.VectorType(_FLOAT, WIDTH)
_ROUNDS = 2  # at least: seldom more, so that the processor foresees the end
_PLACE_BIT, _ROUND_BIT = 16, 20  # above a code: which of its chunk, and which chunk


@intrinsic(prefer_literal=True)
def find_nearest(
    typingctx: Any,
    heads: Any,
    codes: Any,
    keys: Any,
    at: Any,
    scales: Any,
    stride: Any,
    x: Any,
    weight: Any,
    first: Any,
    size: Any,
) -> Any:
    """Replace the keys of some groups by the codes of the points with the least weighted error.

    That is the sum of ``weight * (scale * q - x) ** 2``, element after element, as
    ``iq2_find_best_neighbour`` and ``iq3_find_best_neighbour`` of ``ggml/src/ggml-quants.c`` do
    it; of equals the first.

    Args:
        heads: of ``grids.Lists``.
        codes: of ``grids.Lists``.
        keys: of the groups; ``WIDTH // FEW[size]`` from ``at`` on get their codes and ``ON_GRID``.
        at: see there.
        scales: likewise; of eight, what each level stands for, one ``stride`` after another.
        stride: see there.
        x: the weights, each ``FEW[size]`` times.
        weight: what their errors count, each ``FEW[size]`` times.
        first: where in both the groups begin; further elements follow by ``FEW[size] * LANES``.
        size: of a group, a literal.

    """
    n = size.literal_value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        arrays = {
            name: context.make_array(sig.args[i])(context, builder, args[i]).data
            for i, name in enumerate(("heads", "codes", "keys", "", "scales", "", "x", "weight"))
            if name
        }
        _emit_search(builder, n, at=args[3], stride=args[5], first=args[8], **arrays)
        return context.get_dummy_value()

    place = types.intp
    return types.void(heads, codes, keys, place, scales, place, x, weight, place, size), codegen


def _emit_search(
    builder: Any,
    size: int,
    *,
    heads: Any,
    codes: Any,
    keys: Any,
    at: Any,
    scales: Any,
    stride: Any,
    x: Any,
    weight: Any,
    first: Any,
) -> None:
    few = FEW[size]
    n_groups = WIDTH // few
    keys = builder.gep(keys, [at])
    found_heads = []
    for k in range(n_groups):
        key = builder.load(builder.gep(keys, [_word(k)]))
        found_heads.append(builder.load(builder.gep(heads, [builder.zext(key, at.type)])))
    counts = [builder.and_(head, _word(255)) for head in found_heads]
    chunks = [
        builder.lshr(builder.and_(head, _word(ON_GRID - 1)), _word(8)) for head in found_heads
    ]
    most = _word(_ROUNDS)
    for count in counts:
        most = builder.select(builder.icmp_signed(">", count, most), count, most)
    values = []
    for _ in range(1 if size == 4 else 3):
        scale = _load(builder, scales, at, ir.VectorType(_FLOAT, n_groups))
        values.append(_shuffle(builder, scale, [lane // few for lane in range(WIDTH)]))
        at = builder.add(at, stride)
    best = cgutils.alloca_once_value(builder, _all(_FLOATS, float(np.finfo(np.float32).max)))
    found = cgutils.alloca_once_value(builder, _all(_WORDS, 0))
    with cgutils.for_range(builder, most) as loop:
        parts = []
        for chunk, count in zip(chunks, counts, strict=True):
            last = builder.sub(count, _word(1))
            own = builder.select(builder.icmp_signed("<", loop.index, last), loop.index, last)
            place = builder.mul(builder.add(chunk, own), _word(few))
            part = _load(builder, codes, builder.zext(place, at.type), ir.VectorType(_HALF, few))
            parts.append(part)
        while len(parts) > 1:
            parts = [
                _shuffle(builder, a, list(range(2 * a.type.count)), b)
                for a, b in zip(parts[::2], parts[1::2], strict=True)
            ]
        code = builder.zext(parts[0], _WORDS)
        error = _emit_errors(builder, size, code, values, x, weight, first)
        better = builder.fcmp_ordered("<", error, builder.load(best))
        round_ = _splat(builder, builder.shl(loop.index, _word(_ROUND_BIT)))
        numbered = builder.or_(code, round_)
        builder.store(builder.select(better, numbered, builder.load(found)), found)
        builder.store(builder.select(better, error, builder.load(best)), best)
    errors = builder.bitcast(builder.load(best), _WORDS)  # not negative: ordered as they are
    tied = builder.icmp_unsigned("==", errors, _least_of_each(builder, errors, few))
    places = ir.Constant(_WORDS, [lane % few << _PLACE_BIT for lane in range(WIDTH)])
    place = builder.or_(builder.load(found), places)
    place = builder.select(tied, place, _all(_WORDS, 0xFFFFFFFF))
    code = builder.and_(_least_of_each(builder, place, few), _all(_WORDS, 0xFFFF))
    for k, head in enumerate(found_heads):
        point = builder.extract_element(code, _word(k * few))
        point = builder.or_(point, builder.and_(head, _word(ON_GRID)))
        builder.store(point, builder.gep(keys, [_word(k)]))


def _emit_errors(
    builder: Any, size: int, code: Any, values: list[Any], x: Any, weight: Any, first: Any
) -> Any:
    """The weighted errors of points with these codes."""
    few = FEW[size]
    total = None
    for i in range(size):
        if size == 4:
            q = builder.and_(builder.lshr(code, _all(_WORDS, 4 * i)), _all(_WORDS, 15))
            reached = builder.fmul(values[0], builder.sitofp(q, _FLOATS))
        else:
            reached = values[0]
            for level in (1, 2):
                bit = builder.and_(code, _all(_WORDS, level << 2 * i))
                has = builder.icmp_unsigned("!=", bit, _all(_WORDS, 0))
                reached = builder.select(has, values[level], reached)
        at = builder.add(first, ir.Constant(first.type, i * LANES * few))
        off = builder.fsub(reached, _load(builder, x, at, _FLOATS))
        square = builder.fmul(builder.fmul(_load(builder, weight, at, _FLOATS), off), off)
        total = square if total is None else builder.fadd(total, square)
    return total


def _least_of_each(builder: Any, values: Any, few: int) -> Any:
    """In each lane the least of the unsigned values of its group."""
    step = 1
    while step < few:
        other = _shuffle(builder, values, [lane ^ step for lane in range(WIDTH)])
        values = builder.select(builder.icmp_unsigned("<", other, values), other, values)
        step *= 2
    return values


def _word(value: int) -> Any:
    return ir.Constant(_WORD, value)


def _all(kind: Any, value: float) -> Any:
    return ir.Constant(kind, [value] * WIDTH)


def _load(builder: Any, pointer: Any, at: Any, kind: Any) -> Any:
    pointer = builder.bitcast(builder.gep(pointer, [at]), kind.as_pointer())
    return builder.load(pointer, align=kind.element.width // 8 if kind.element == _HALF else 4)


def _shuffle(builder: Any, vector: Any, lanes: list[int], other: Any = None) -> Any:
    other = ir.Constant(vector.type, ir.Undefined) if other is None else other
    which = ir.Constant(ir.VectorType(_WORD, len(lanes)), lanes)
    return builder.shuffle_vector(vector, other, which)


def _splat(builder: Any, value: Any) -> Any:
    undefined = ir.Constant(ir.VectorType(value.type, WIDTH), ir.Undefined)
    return _shuffle(builder, builder.insert_element(undefined, value, _word(0)), [0] * WIDTH)


@inlined
def _repeat(tile, start, size, few, out):
    """Each element of a group ``few`` times."""
    for i in range(size * LANES):
        value = tile[start * LANES + i]
        for k in range(few):
            out[i * few + k] = value


@compiled
def find_points_of_four(lists, keys, scales, n, x, weight, start):
    """Replace the keys of groups by the codes of the points that are nearest.

    Args:
        lists: of the grid.
        keys: ``n`` vectors, one for each candidate; they get ``ON_GRID``, too.
        scales: theirs, ``n`` vectors.
        n: how many candidates.
        x: a tile with the magnitudes.
        weight: a tile with what their errors count in this search.
        start: where in both the groups begin.

    """
    xs, weights = np.empty((2, 4 * LANES * 4), np.float32)
    _repeat(x, start, 4, 4, xs)
    _repeat(weight, start, 4, 4, weights)
    for lane in range(0, LANES, 4):
        for at in range(lane, n * LANES, LANES):
            find_nearest(lists.heads, lists.codes, keys, at, scales, 0, xs, weights, lane * 4, 4)


@compiled
def find_points_of_eight(lists, keys, scales, stride, n, x, weight, start):
    """``find_points_of_four`` for groups of eight.

    ``scales`` are what the three levels stand for, each ``stride`` behind that before.
    """
    xs, weights = np.empty((2, 8 * LANES * 8), np.float32)
    _repeat(x, start, 8, 8, xs)
    _repeat(weight, start, 8, 8, weights)
    for lane in range(0, LANES, 2):
        for at in range(lane, n * LANES, LANES):
            find_nearest(
                lists.heads, lists.codes, keys, at, scales, stride, xs, weights, lane * 8, 8
            )


@compiled
def number_points(lists, chosen, n):
    """Replace the codes of ``n`` vectors by the numbers of their points."""
    for place in range(n * LANES):
        chosen[place] = lists.numbers[chosen[place] & 0xFFFF]
