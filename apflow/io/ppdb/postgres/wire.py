"""PostgreSQL's binary rows to and from Arrow's buffers: loops over every field, compiled.

Integers and floats travel big-endian, each after its length in four bytes, -1
for null. Columns are handed over in one block of bytes: where each begins and
how wide its values are tell the rest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]


@njit(cache=True, nogil=True)
def _word(buffer: Bytes, p: int) -> Any:
    """The big-endian int32 at `p`."""
    value = (np.uint32(buffer[p]) << 24) | (np.uint32(buffer[p + 1]) << 16)
    value |= (np.uint32(buffer[p + 2]) << 8) | np.uint32(buffer[p + 3])
    return np.int32(value)


@njit(cache=True, nogil=True)
def _put_word(buffer: Bytes, p: int, value: Any) -> None:
    buffer[p] = value >> 24 & 0xFF
    buffer[p + 1] = value >> 16 & 0xFF
    buffer[p + 2] = value >> 8 & 0xFF
    buffer[p + 3] = value & 0xFF


@njit(cache=True, nogil=True)
def _reverse(source: Bytes, p: int, target: Bytes, q: int, width: int) -> None:
    """Copy a value and turn its bytes about. Constant lengths compile to a load, a swap and a store."""
    if width == 4:
        a, b, c, d = source[p], source[p + 1], source[p + 2], source[p + 3]
        target[q], target[q + 1], target[q + 2], target[q + 3] = d, c, b, a
    elif width == 8:
        a, b, c, d = source[p], source[p + 1], source[p + 2], source[p + 3]
        e, f, g, h = source[p + 4], source[p + 5], source[p + 6], source[p + 7]
        target[q], target[q + 1], target[q + 2], target[q + 3] = h, g, f, e
        target[q + 4], target[q + 5], target[q + 6], target[q + 7] = d, c, b, a
    elif width == 1:
        target[q] = source[p]
    else:
        a, b = source[p], source[p + 1]
        target[q], target[q + 1] = b, a


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
        The columns' values, one column after the other.
    start, width
        Per column: where it begins in `block`; bytes a value, 0 for text.
    text, offsets
        Per column, the row of `offsets` that says where its texts begin in the column; -1 if of fixed width.
    null, valid
        Per column, the row of `valid` that is 0 where the value is null; -1 if none is.
    out
        Long enough for all rows.
    """
    n_columns = len(start)
    p = 0
    for row in range(n_rows):
        out[p] = n_columns >> 8
        out[p + 1] = n_columns & 0xFF
        p += 2
        for c in range(n_columns):
            if null[c] >= 0 and valid[null[c], row] == 0:
                _put_word(out, p, -1)
                p += 4
            elif text[c] < 0:
                _put_word(out, p, width[c])
                _reverse(block, start[c] + row * width[c], out, p + 4, width[c])
                p += 4 + width[c]
            else:
                begin, end = offsets[text[c], row], offsets[text[c], row + 1]
                _put_word(out, p, end - begin)
                p += 4
                for i in range(start[c] + begin, start[c] + end):
                    out[p] = block[i]
                    p += 1
    return p


@njit(cache=True, nogil=True)
def read_rows(
    buffer: Bytes,
    p: int,
    packed: bool,
    width: Ints,
    start: Ints,
    block: Bytes,
    valid: Bytes,
    nulls: Ints,
    text: Ints,
    place: Ints,
) -> tuple[int, int, int]:
    """Read rows, from COPY BINARY or, `packed`, as ``record_send`` writes them.

    Parameters
    ----------
    buffer, p
        The bytes, and where the first row begins.
    packed
        Fields are counted in four bytes, and each has its type's oid before its length; there is no trailer.
    width, start
        Per column: bytes a value, 0 for text; where it begins in `block`.
    block, valid, nulls
        Output: the values, one column after the other; per column and row, 0 for null; nulls per column.
    text, place
        Per column, the row of `place` that takes where each text begins and ends, -1 if of fixed width;
        shape (texts, rows, 2).

    Returns
    -------
    tuple
        The number of rows and (-1, 0); or the row, the column and the length of a field that does not fit:
        column ``len(width)`` if it is the number of fields, or if the buffer ends within the row.
    """
    n_columns = len(width)
    n_bytes = len(buffer)
    head, gap = (4, 4) if packed else (2, 0)
    row = 0
    while p < n_bytes:
        if p + 2 > n_bytes:
            return row, n_columns, -2
        if not packed and buffer[p] == 0xFF and buffer[p + 1] == 0xFF:
            return row, -1, 0
        if p + head > n_bytes:
            return row, n_columns, -2
        fields = _word(buffer, p) if packed else np.int32(buffer[p]) << 8 | np.int32(buffer[p + 1])
        if fields != n_columns:
            return row, n_columns, int(fields)
        p += head
        for c in range(n_columns):
            p += gap
            if p + 4 > n_bytes:
                return row, n_columns, -2
            length = _word(buffer, p)
            p += 4
            if length < 0:
                valid[c, row] = 0
                nulls[c] += 1
                if text[c] >= 0:
                    place[text[c], row, 0] = place[text[c], row, 1] = p
                else:
                    for i in range(width[c]):
                        block[start[c] + row * width[c] + i] = 0
                continue
            if p + length > n_bytes:
                return row, n_columns, -2
            valid[c, row] = 1
            if text[c] >= 0:
                place[text[c], row, 0] = p
                place[text[c], row, 1] = p + length
            elif length == width[c]:
                _reverse(buffer, p, block, start[c] + row * width[c], width[c])
            else:
                return row, c, int(length)
            p += length
        row += 1
    if not packed:
        return row, n_columns, -2
    return row, -1, 0


@njit(cache=True, nogil=True)
def gather(buffer: Bytes, place: Ints, offsets: NDArray[np.int32], out: Bytes) -> None:
    """Lay texts end to end: the i-th, ``buffer[place[i, 0]:place[i, 1]]``, from ``offsets[i]`` on."""
    for row in range(len(place)):
        q = offsets[row]
        for i in range(place[row, 0], place[row, 1]):
            out[q] = buffer[i]
            q += 1
