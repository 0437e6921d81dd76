"""Open text files, compressed or not, in bounded memory and in time that is linear in their size.

What a few bytes of compressed data expand to is bounded before it is made: input is decompressed 1 KiB at a time, of
which a zstd frame makes 32 MiB at most, with a window of 64 MiB at most. A file that expands beyond all that text does
is refused.
"""

import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

import zstandard

from bertjax.storage.files import open_given

_PIECE = 2**10  # compressed bytes that are decompressed at once
_WINDOW = 2**26  # bytes; `zstd -21` uses as many
_MOST_EXPANDED = 200  # text is compressed 3 to 20 times, tables of numbers and logs up to 100 times
_FREE = 2**21  # bytes that any file may expand to


class Unreadable(OSError):
    """Compressed data that are damaged or cut short, or that expand without bound."""


def open_bytes(path: Path, most: int | None = None) -> BinaryIO:
    """Open a file for reading, decompressed if its name ends in .gz or .zst.

    most: bytes of its content, by default any number. Raises InputError where it is not a regular file or larger, and,
    while it is read, Unreadable.
    """
    if path.suffix == ".gz":
        return _decompressed(path, lambda: zlib.decompressobj(wbits=31), most)
    if path.suffix == ".zst":
        return _decompressed(path, zstandard.ZstdDecompressor(max_window_size=_WINDOW).decompressobj, most)
    return open_given(path, most)


def _decompressed(path: Path, begin: Callable[[], Any], most: int | None) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(_Decompressed(open_given(path), begin, most), 2**16))


class _Decompressed(io.RawIOBase):
    """Decompress frame by frame (of gzip: member by member); the end of a truncated file is an error.

    begin: returns an object that decompresses one frame.
    """

    def __init__(self, file: BinaryIO, begin: Callable[[], Any], most: int | None) -> None:
        self._file, self._begin, self._most = file, begin, most
        self._frame: Any = None
        self._decoded, self._at = b"", 0
        self._read = self._made = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while self._at == len(self._decoded):
            packed = self._file.read(_PIECE)
            if not packed:
                if self._frame is not None:
                    raise Unreadable("the compressed data end too early: the file is truncated")
                return 0
            self._decoded, self._at = self._decode(packed), 0
            self._read += len(packed)
            self._made += len(self._decoded)
            self._check()
        size = min(len(buffer), len(self._decoded) - self._at)
        buffer[:size] = memoryview(self._decoded)[self._at : self._at + size]
        self._at += size
        return size

    def _decode(self, packed: bytes) -> bytes:
        parts = []
        try:
            while packed:
                if self._frame is None:
                    packed = packed.lstrip(b"\0")  # padding, as tapes have it, and no frame begins so
                    if not packed:
                        break
                    self._frame = self._begin()
                parts.append(self._frame.decompress(packed))
                packed = self._frame.unused_data if self._frame.eof else b""
                self._frame = None if self._frame.eof else self._frame
        except (zlib.error, zstandard.ZstdError) as error:
            raise Unreadable(f"the compressed data are damaged, or need too much memory ({error})") from error
        return b"".join(parts)

    def _check(self) -> None:
        remedy = "decompress it yourself, if you trust it"
        if self._most is not None and self._made > self._most:
            raise Unreadable(f"it has more than {self._most:,} bytes, decompressed")
        if self._made > _FREE and self._made > _MOST_EXPANDED * self._read:
            raise Unreadable(f"it expands more than {_MOST_EXPANDED} times, as no text does: {remedy}")
        if self._read > 2**20 and self._made < self._read // 16:
            raise Unreadable(f"it is made of frames that are almost empty: {remedy}")

    def close(self) -> None:
        self._file.close()
        super().close()
