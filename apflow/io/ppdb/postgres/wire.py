"""PostgreSQL's binary rows to and from columns: loops over every field, compiled.

A field is its length in four bytes, -1 for null, and its value, big-endian.
Columns lie one after the other in one block of memory, each from a multiple of
8 bytes on. Rows are read in tiles that fit the cache, and each tile column by
column: to write a hundred columns at once would miss it at every value.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]

_TILE = 128
#: What `read_rows` gives as the length of a field that the buffer ends in.
CUT_SHORT = -2

# Unsigned indices: a signed one costs a comparison with 0 at each byte.
_U = np.uint64
_1, _2, _3, _4 = _U(1), _U(2), _U(3), _U(4)
_8, _16, _24, _32 = np.uint32(8), np.uint32(16), np.uint32(24), _U(32)


@njit(cache=True, nogil=True)
def _get4(data: Bytes, p: np.uint64) -> np.uint32:
    high = np.uint32(data[p]) << _24 | np.uint32(data[p + _1]) << _16
    return np.uint32(high | np.uint32(data[p + _2]) << _8 | np.uint32(data[p + _3]))


@njit(cache=True, nogil=True)
def _get8(data: Bytes, p: np.uint64) -> np.uint64:
    return _U(_get4(data, p)) << _32 | _U(_get4(data, p + _4))


@njit(cache=True, nogil=True)
def _get2(data: Bytes, p: np.uint64) -> np.uint32:
    return np.uint32(data[p]) << _8 | np.uint32(data[p + _1])


@njit(cache=True, nogil=True)
def _int4(data: Bytes, p: int) -> Any:
    """A length, -1 for null: as int64, for numba turns what is now signed, now not, into a float."""
    return np.int64(np.int32(_get4(data, _U(p))))


@njit(cache=True, nogil=True)
def _int2(data: Bytes, p: int) -> Any:
    """A number of fields."""
    return np.int64(_get2(data, _U(p)))


@njit(cache=True, nogil=True)
def _put4(data: Bytes, p: np.uint64, value: np.uint32) -> None:
    data[p] = value >> _24
    data[p + _1] = value >> _16
    data[p + _2] = value >> _8
    data[p + _3] = value


@njit(cache=True, nogil=True)
def write_rows(
    n_rows: int, block: Bytes, start: Ints, width: Ints, text: Ints, offsets: Ints, null: Ints, valid: Bytes, out: Bytes
) -> int:
    """Write rows as COPY BINARY has them; gives the number of bytes.

    Parameters
    ----------
    n_rows
        Number of rows.
    block
        The columns' values, one column after the other, a multiple of 8 bytes.
    start, width
        Per column: where it begins in `block`, a multiple of 8; bytes a value, 0 for text.
    text, offsets
        Per column, the row of `offsets` that says where its texts begin in the column; -1 if of fixed width.
    null, valid
        Per column, the row of `valid` that is 0 where the value is null; -1 if none is.
    out
        Long enough for all rows.
    """
    n_columns = len(start)
    block8, block4, block2 = block.view(np.uint64), block.view(np.uint32), block.view(np.uint16)
    p = _U(0)
    for row in range(n_rows):
        out[p], out[p + _1] = n_columns >> 8, n_columns & 0xFF
        p += _2
        for c in range(n_columns):
            w = width[c]
            if null[c] >= 0 and valid[null[c], row] == 0:
                _put4(out, p, np.uint32(0xFFFFFFFF))
                p += _4
                continue
            if w == 0:
                begin, end = start[c] + offsets[text[c], row], start[c] + offsets[text[c], row + 1]
                _put4(out, p, np.uint32(end - begin))
                for i in range(begin, end):
                    out[p + _4 + _U(i - begin)] = block[i]
                p += _4 + _U(end - begin)
                continue
            _put4(out, p, np.uint32(w))
            p += _4
            if w == 4:
                _put4(out, p, block4[start[c] // 4 + row])
            elif w == 8:
                value = block8[start[c] // 8 + row]
                _put4(out, p, np.uint32(value >> _32))
                _put4(out, p + _4, np.uint32(value))
            elif w == 1:
                out[p] = block[start[c] + row]
            else:
                short = block2[start[c] // 2 + row]
                out[p], out[p + _1] = short >> 8, short & 0xFF
            p += _U(w)
    return int(p)


@njit(cache=True, nogil=True)
def read_rows(
    buffer: Bytes, p: int, packed: bool, width: Ints, start: Ints, block: Bytes, valid: Bytes, text: Ints, place: Ints
) -> tuple[int, int, int]:
    """Read rows, from COPY BINARY or, `packed`, as ``record_send`` writes them.

    Parameters
    ----------
    buffer, p
        The bytes, and where the first row begins.
    packed
        Fields are counted in four bytes, and each has its type's oid before its length; there is no trailer.
    width, start
        Per column: bytes a value, 0 for text; where it begins in `block`, a multiple of 8.
    block, valid
        Output: the values, one column after the other; flags per column and row, 0 for null.
    text, place
        Per column, the row of `place` that takes where each text begins and ends, -1 if of fixed width;
        shape (texts, rows, 2).

    Returns
    -------
    tuple
        The number of rows and (-1, 0); or the row, the column and the length of a field that does not fit:
        column ``len(width)`` if it is the number of fields, or `CUT_SHORT` if the buffer ends within the row.
    """
    fields = np.empty((len(width), _TILE), np.int64)
    rows = 0
    while True:
        n, p, column, found = _find_fields(buffer, p, packed, width, fields)
        if column >= 0:
            return rows + n, column, found
        for c in range(len(width)):
            valid[c, rows : rows + n] = fields[c, :n] >= 0
            if width[c]:
                _take_values(buffer, fields[c, :n], width[c], block, start[c] // width[c] + rows)
            else:
                _take_places(buffer, fields[c, :n], place[text[c], rows:])
        rows += n
        if n < _TILE:
            return rows, -1, 0


@njit(cache=True, nogil=True)
def _find_fields(buffer: Bytes, p: int, packed: bool, width: Ints, fields: Ints) -> tuple[int, int, int, int]:
    """Where each value of the next tile of rows begins, -1 for null: rows, end, and column and length of a misfit."""
    n_columns, n_bytes = len(width), len(buffer)
    for r in range(fields.shape[1]):
        if packed and p == n_bytes:
            return r, p, -1, 0
        if p + (4 if packed else 2) > n_bytes:
            return r, p, n_columns, CUT_SHORT
        count = _int4(buffer, p) if packed else _int2(buffer, p)
        if count == 0xFFFF and not packed:
            return r, p, -1, 0
        if count != n_columns:
            return r, p, n_columns, count
        p += 4 if packed else 2
        for c in range(n_columns):
            p += 4 if packed else 0
            if p + 4 > n_bytes:
                return r, p, n_columns, CUT_SHORT
            length = _int4(buffer, p)
            p += 4
            if length < 0:
                fields[c, r] = -1
                continue
            if p + length > n_bytes:
                return r, p, n_columns, CUT_SHORT
            if width[c] and length != width[c]:
                return r, p, c, length
            fields[c, r] = p
            p += length
    return fields.shape[1], p, -1, 0


@njit(cache=True, nogil=True)
def _take_values(buffer: Bytes, at: Ints, width: int, block: Bytes, first: int) -> None:
    """Put values of one width that begin at `at` into a block, the first as its `first` one of that width."""
    n = len(at)
    if width == 4:
        block4 = block.view(np.uint32)[first : first + n]
        for i in range(n):
            block4[i] = _get4(buffer, _U(at[i])) if at[i] >= 0 else np.uint32(0)
    elif width == 8:
        block8 = block.view(np.uint64)[first : first + n]
        for i in range(n):
            block8[i] = _get8(buffer, _U(at[i])) if at[i] >= 0 else _U(0)
    elif width == 2:
        block2 = block.view(np.uint16)[first : first + n]
        for i in range(n):
            block2[i] = _get2(buffer, _U(at[i])) if at[i] >= 0 else np.uint32(0)
    else:
        for i in range(n):
            block[first + i] = buffer[_U(at[i])] if at[i] >= 0 else np.uint8(0)


@njit(cache=True, nogil=True)
def _take_places(buffer: Bytes, at: Ints, place: Ints) -> None:
    """Note where texts that begin at `at` begin and end; nowhere for a null."""
    for i in range(len(at)):
        if at[i] >= 0:
            place[i, 0] = at[i]
            place[i, 1] = at[i] + _int4(buffer, at[i] - 4)
        else:
            place[i, 0] = place[i, 1] = 0


@njit(cache=True, nogil=True)
def find_rows(buffer: Bytes, width: Ints, fields: Ints) -> tuple[int, int, int]:
    """Where each value of packed rows begins, -1 for null.

    Parameters
    ----------
    buffer, width
        See `read_rows`.
    fields
        Output, shape (columns, rows): as many rows as there must be.

    Returns
    -------
    tuple
        See `read_rows`; the number of rows may be less than there must be.
    """
    rows, end, column, found = _find_fields(buffer, 0, True, width, fields)
    if column < 0 and end != len(buffer):
        return rows, len(width), len(width)
    return rows, column, found


@njit(cache=True, nogil=True)
def take_column(buffer: Bytes, at: Ints, width: int, block: Bytes) -> None:
    """Put values of one width that begin at `at` into a block."""
    _take_values(buffer, at, width, block, 0)


@njit(cache=True, nogil=True)
def take_rows(
    buffer: Bytes,
    fields: Ints,
    take: Ints,
    width: Ints,
    null: NDArray[np.uint64],
    mask: Ints,
    text: Ints,
    start: Ints,
    block: Bytes,
    masks: Bytes,
    place: Ints,
) -> None:
    """Put some rows, in some order, where a frame wants them.

    Parameters
    ----------
    buffer, fields
        The rows, and what `find_rows` found.
    take
        Which rows, in which order.
    width, null, mask, text
        Per column, see `apflow.io.ppdb.blocks.Layout`.
    start, block, masks, place
        Output: see `read_rows`; the flags are 1 for null.
    """
    some = np.empty(_TILE, np.int64)
    for first in range(0, len(take), _TILE):
        which = take[first : first + _TILE]
        at = some[: len(which)]
        for c in range(len(width)):
            for i in range(len(which)):
                at[i] = fields[c, which[i]]
            if width[c] == 0:
                _take_places(buffer, at, place[text[c], first:])
                continue
            _take_values(buffer, at, width[c], block, start[c] // width[c] + first)
            if mask[c] >= 0:
                masks[mask[c], first : first + len(which)] = at < 0
            elif null[c]:
                _put_nulls(at, width[c], null[c], block, start[c] // width[c] + first)


@njit(cache=True, nogil=True)
def _put_nulls(at: Ints, width: int, null: np.uint64, block: Bytes, first: int) -> None:
    for i in range(len(at)):
        if at[i] < 0:
            if width == 4:
                block.view(np.uint32)[first + i] = np.uint32(null)
            else:
                block.view(np.uint64)[first + i] = null


@njit(cache=True, nogil=True)
def gather(buffer: Bytes, place: Ints, offsets: NDArray[np.int32], out: Bytes) -> None:
    """Lay texts end to end: the i-th, ``buffer[place[i, 0]:place[i, 1]]``, from ``offsets[i]`` on."""
    for row in range(len(place)):
        q = offsets[row]
        for i in range(place[row, 0], place[row, 1]):
            out[q] = buffer[i]
            q += 1
