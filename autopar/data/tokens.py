"""Token files: one long row of token numbers, mapped into memory."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from autopar.core.errors import InputError

TokenType = Literal["uint16", "uint32"]


class TokenFile(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Pieces of a file of ``uint16`` or ``uint32`` token numbers, for next-token prediction.

    Sample ``i`` is ``(tokens[a : a + seq], tokens[a + 1 : a + seq + 1])`` with ``a = i * stride``,
    both int64. The last tokens that fill no sample are left out.

    Attributes:
        tokens: Number of tokens in the file.

    Args:
        path: The file: token numbers in this machine's byte order, no header.
        seq: Tokens per sample.
        dtype: Type of a number.
        stride: Tokens from a sample's start to the next one's; ``seq`` by default, less to
            overlap.
        vocab: Size of the vocabulary, to refuse numbers beyond it; not checked by default.

    Raises:
        InputError: No such file, a truncated one, or one too short for a sample.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        seq: int,
        dtype: TokenType = "uint16",
        stride: int | None = None,
        vocab: int | None = None,
    ) -> None:
        self._path = Path(path).expanduser()
        self._seq, self._stride, self._vocab = seq, seq if stride is None else stride, vocab
        for name, value in (("seq", self._seq), ("stride", self._stride)):
            if value < 1:
                raise InputError(f"token file with {name}={value}", hint="use 1 or more")
        if dtype not in ("uint16", "uint32"):
            raise InputError(f"token file of '{dtype}'", hint="use uint16 or uint32")
        if not self._path.is_file():
            raise InputError(f"{self._path}: no such file", hint="give a file of token numbers")
        size, item = self._path.stat().st_size, np.dtype(dtype).itemsize
        if size % item:
            raise InputError(
                f"{self._path} has {size} bytes, no whole number of {dtype}",
                hint="the file is truncated, or dtype is another",
            )
        self.tokens = size // item
        if self.tokens < seq + 1:
            raise InputError(
                f"{self._path} has {self.tokens} tokens, one sample of seq={seq} needs {seq + 1}",
                hint="use a smaller seq or a longer file",
            )
        self._mapped = np.memmap(self._path, dtype=dtype, mode="r")

    def __len__(self) -> int:
        return (self.tokens - self._seq - 1) // self._stride + 1

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One sample.

        Raises:
            InputError: A token number is beyond the vocabulary.
        """
        if not 0 <= i < len(self):
            raise IndexError(i)
        start = i * self._stride
        piece = self._mapped[start : start + self._seq + 1].astype(np.int64)
        if self._vocab is not None and int(piece.max()) >= self._vocab:
            raise InputError(
                f"{self._path} has token {int(piece.max())} after position {start}, the "
                f"vocabulary has {self._vocab}",
                hint="use the vocabulary the file was made with; check dtype",
            )
        row = torch.from_numpy(piece)
        return row[:-1], row[1:]
