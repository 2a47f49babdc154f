"""Frames made of few blocks of memory, as pandas itself keeps columns: a hundred arrays a frame cost milliseconds."""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from pandas.api.internals import create_dataframe_from_blocks

from apflow.io.ppdb.own_tables import OWN
from apflow.model import schema

I8 = NDArray[np.int64]
_MASKED: dict[str, tuple[str, Any]] = {
    "boolean": ("bool", pd.arrays.BooleanArray),
    **{f"Int{n}": (f"int{n}", pd.arrays.IntegerArray) for n in (16, 32, 64)},
}


@dataclass(frozen=True)
class _Block:
    """Columns of one type, side by side: an array of pandas each where `array` is given, one for all otherwise."""

    dtype: np.dtype[Any]
    array: Any
    first: int
    places: NDArray[np.intp]


class Layout:
    """Where the columns of a table lie in memory; made once, see `layout`.

    Attributes
    ----------
    names
        The columns in the order of the memory: texts last.
    types, width
        Type of the values, and their bytes; 0 for text.
    null
        What stands for null, as bits: NaN in a float column.
    mask, text
        Per column, its row among the masks or the texts; -1 if it has none.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        table = OWN[name] if name in OWN else schema.table(name)
        by_type: dict[str, list[int]] = {}
        for place, column in enumerate(table.columns):
            by_type.setdefault(column.dtype, []).append(place)
        order = sorted(by_type, key=lambda t: (t == "str", t in _MASKED))
        places = [place for kind in order for place in by_type[kind]]
        kinds = [kind for kind in order for _ in by_type[kind]]
        types = tuple(np.dtype("V0" if k == "str" else _MASKED.get(k, (k,))[0]) for k in kinds)
        self.types = types
        self.names = tuple(table.columns[place].name for place in places)
        self.width = np.array([t.itemsize for t in types], np.int64)
        self.null = np.array([_nan_bits(t) for t in types], np.uint64)
        self.mask = _number([k in _MASKED for k in kinds])
        self.text = _number([k == "str" for k in kinds])
        self.blocks = [
            _Block(types[kinds.index(k)], _MASKED.get(k, (k, None))[1], kinds.index(k), np.array(by_type[k], np.intp))
            for k in order
            if k != "str"
        ]
        self.texts = [(np.array([p], np.intp), table.dtypes[p]) for p in by_type.get("str", ())]
        self.columns = pd.Index(table.names)

    def room(self, n: int) -> Room:
        """Memory for `n` rows."""
        return Room(self, n)

    def starts(self, n: int) -> I8:
        """Where each column of `n` values begins in memory, a multiple of its width, and the end of all."""
        starts = np.zeros(len(self.width) + 1, np.int64)
        end = 0
        for block in self.blocks:
            count, size = len(block.places), n * block.dtype.itemsize
            starts[block.first : block.first + count] = end + size * np.arange(count)
            end += -(-count * size // 8) * 8
            starts[block.first + count :] = end
        return starts


@dataclass(frozen=True, eq=False)
class _Target:
    """Where a block of a frame goes in a `Room`: values and masks, their last axis the rows, or the i-th text."""

    kind: Any
    values: Any = None
    masks: Any = None
    text: int = -1


class Room:
    """Memory for the rows of a frame.

    Attributes
    ----------
    starts, memory
        Where each column's values begin in the memory, which is of bytes.
    values
        The values of each column but those of text, in the order of `Layout.names`.
    masks
        True where a value is null, shape (columns with a mask, n).
    """

    def __init__(self, made: Layout, n: int) -> None:
        self._made, self._n = made, n
        self.starts = made.starts(n)
        self.memory = np.empty(int(self.starts[-1]), np.uint8)
        self.masks = np.empty((int(made.mask.max(initial=-1)) + 1, n), bool)
        self._blocks = [
            self.memory[self.starts[b.first] :][: len(b.places) * n * b.dtype.itemsize]
            .view(b.dtype)
            .reshape(len(b.places), n)
            for b in made.blocks
        ]
        self.values = [column for block in self._blocks for column in block]

    def target(self, places: I8, values: Any) -> _Target | None:
        """Where the values of a frame's block belong; None: they are not of the types of the table."""
        for block, memory in zip(self._made.blocks, self._blocks, strict=True):
            if block.array is None:
                if np.array_equal(places, block.places):
                    return _Target(np.ndarray, memory)
            elif isinstance(values, block.array) and places[0] in block.places:
                i = int(np.searchsorted(block.places, places[0]))
                return _Target(block.array, memory[i], self.masks[self._made.mask[block.first] + i])
        for i, (place, dtype) in enumerate(self._made.texts):
            if np.array_equal(places, place) and values.dtype == dtype:
                return _Target(type(values), text=i)
        return None

    def frame(self, texts: Sequence[pa.Array]) -> pd.DataFrame:
        """The rows as a frame over this memory, once it is filled; `texts` are the columns of text."""
        blocks: list[tuple[Any, NDArray[np.intp]]] = []
        for b, values in zip(self._made.blocks, self._blocks, strict=True):
            if b.array is None:
                blocks.append((values, b.places))
            else:
                null = self.masks[self._made.mask[b.first] :][: len(values)]
                blocks += [
                    (b.array(v, m), b.places[i : i + 1]) for i, (v, m) in enumerate(zip(values, null, strict=True))
                ]
        blocks += [(pd.array(t, dtype=dtype), place) for (place, dtype), t in zip(self._made.texts, texts, strict=True)]
        frame: pd.DataFrame = create_dataframe_from_blocks(blocks, pd.RangeIndex(self._n), self._made.columns)
        if self._made.name not in OWN:
            frame.attrs = schema.attrs(self._made.name)
        return frame


def joined(frames: Sequence[pd.DataFrame], name: str) -> pd.DataFrame | None:
    """Frames one below the other; None unless each has exactly the types of the table.

    `pandas.concat` plans every column of every frame, which for the frames of
    a focal plane costs three times as much as to copy them.
    """
    made = layout(name)
    room = made.room(sum(map(len, frames)))
    texts: list[list[pa.Array]] = [[] for _ in made.texts]
    end = 0
    for _, group in itertools.groupby(frames, _places):
        alike = list(group)
        if not alike[0].columns.equals(made.columns):
            return None
        begin, end = end, end + sum(map(len, alike))
        for column in zip(*(f._mgr.blocks for f in alike), strict=True):
            target = room.target(column[0].mgr_locs.as_array, column[0].values)
            # Column by column: to copy a frame's hundred pieces one by one takes ten times as long as their bytes do.
            pieces: list[Any] = [block.values for block in column]
            if target is None or {*map(type, pieces)} != {target.kind}:
                return None
            if target.text >= 0:
                texts[target.text] += [chunk for piece in pieces for chunk in piece._pa_array.chunks]
                continue
            plain = pieces if target.masks is None else [piece._data for piece in pieces]
            if {values.dtype for values in plain} != {target.values.dtype}:
                return None
            np.concatenate(plain, axis=-1, out=target.values[..., begin:end])
            if target.masks is not None:
                np.concatenate([piece._mask for piece in pieces], out=target.masks[begin:end])
    return room.frame([pa.chunked_array(chunks).combine_chunks() for chunks in texts])


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Without Python's garbage collector, where many frames are made.

    A focal plane's history is 100,000 objects, none of them garbage; for them
    the collector looks through all others of the process several times, which
    takes as long as to read the rows.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _places(frame: pd.DataFrame) -> tuple[bytes, bytes]:
    """Which block holds each column, and where in it."""
    return frame._mgr.blknos.tobytes(), frame._mgr.blklocs.tobytes()


def _number(flags: Sequence[bool]) -> I8:
    """0, 1, 2... for those that are flagged, -1 for the others."""
    return np.where(flags, np.cumsum(flags) - 1, -1).astype(np.int64)


def _nan_bits(dtype: np.dtype[Any]) -> int:
    if dtype.kind != "f":
        return 0
    return int(np.array([np.nan], dtype).view(f"u{dtype.itemsize}")[0])


@functools.cache
def layout(name: str) -> Layout:
    """The layout of a table of the PPDB."""
    return Layout(name)
