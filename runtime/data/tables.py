"""Rows of Hugging Face data sets, from local Arrow and Parquet files."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from shardlang.runtime.data.batch import IDS, LABELS, NO_ROLES, Roles, Wanted
from shardlang.runtime.data.order import Numbers
from shardlang.runtime.data.tokens import check_largest
from shardlang.runtime.errors import RunError

SUFFIXES = (".arrow", ".parquet")
_LOOKED_AT = 16
"""Rows by whose values two data sets are told apart."""


class Table(Protocol):
    """What is read of a data set."""

    column_names: list[str]

    def __len__(self) -> int: ...
    def __getitem__(self, rows: int | list[int]) -> Mapping[str, object]: ...
    def with_format(self, kind: str, columns: list[str]) -> Table: ...
    def select_columns(self, names: list[str]) -> Table: ...
    def iter(self, batch_size: int) -> Iterator[Mapping[str, Sequence[object]]]: ...


class TableSamples:
    """Rows of a table, whose columns are the inputs of the model; `labels` may be the ids."""

    cut = "rows"

    def __init__(
        self,
        path: Path,
        wanted: Sequence[Wanted],
        vocabulary: int,
        split: str = "train",
        roles: Roles = NO_ROLES,
    ) -> None:
        """Open the table.

        Args:
            vocabulary: how many tokens the model knows.
            split: the part, of a data set that has several.

        Raises:
            RunError: SH0651, the table cannot be read; SH0605, it has not the model's inputs.
        """
        self.name = str(path)
        self._wanted = {one.name: one for one in wanted}
        self._vocabulary, self._roles = vocabulary, roles
        self._table = open_table(path, split)
        self._columns = {name: self._column(name) for name in self._wanted}
        self.fingerprint = self._fingerprint()

    def _column(self, name: str) -> str:
        known, role = self._table.column_names, self._roles.get(name, name)
        names = [name, role, *([IDS] if role == LABELS else [])]
        found = next((one for one in names if one in known), None)
        if found is not None:
            return found
        raise RunError(
            "SH0605",
            f"`{self.name}` has no column `{name}`; it has {', '.join(f'`{x}`' for x in known)}",
            help="rename the column; or turn texts into tokens by `shardlang data prepare`",
        )

    def _fingerprint(self) -> str:
        hash = hashlib.blake2b(repr((len(self), self._columns)).encode(), digest_size=16)
        columns = sorted(set(self._columns.values()))
        for row in np.linspace(0, len(self) - 1, _LOOKED_AT if len(self) else 0, dtype=np.int64):
            found = self._table.select_columns(columns)[int(row)]
            hash.update(repr([found[name] for name in columns]).encode())
        return hash.hexdigest()

    def __len__(self) -> int:
        return len(self._table)

    def read(self, numbers: Numbers, names: Collection[str]) -> dict[str, Tensor]:
        """Some inputs of some rows."""
        if not len(numbers):
            return {name: self._none(name) for name in names}
        columns = sorted({self._columns[name] for name in names})
        found = self._table.with_format("torch", columns)[numbers.tolist()]
        return {name: self._input(found[self._columns[name]], name, numbers) for name in names}

    def _none(self, name: str) -> Tensor:
        """No rows of an input."""
        wanted = self._wanted[name]
        return torch.empty((0, *wanted.shape[1:]), dtype=wanted.dtype)

    def _input(self, found: object, name: str, numbers: Numbers) -> Tensor:
        """An input, made of a column of some rows.

        Raises:
            RunError: SH0605, a row is none of the model's; SH0652, a token is not.
        """
        wanted = self._wanted[name]
        shape = wanted.shape[1:]
        if not isinstance(found, Tensor) or tuple(found.shape[1:]) != shape:
            rows = found if isinstance(found, (Tensor, list)) else [found]
            unfit = (
                x for x in enumerate(rows) if not isinstance(x[1], Tensor) or x[1].shape != shape
            )
            place, row = next(unfit, (0, found))
            raise self._unfit(name, int(numbers[place]), row, shape)
        if found.is_floating_point() and not wanted.dtype.is_floating_point:
            raise RunError(
                "SH0605",
                f"`{self._columns[name]}` in `{self.name}` holds floats, and the model"
                f" takes {str(wanted.dtype).removeprefix('torch.')}",
                help="make whole numbers of the column, or name another one",
            )
        if self._roles.get(name, name) == IDS and found.numel():
            check_largest(self.name, int(found.max()), self._vocabulary)
        return found.to(wanted.dtype)

    def _unfit(self, name: str, number: int, row: object, shape: tuple[int, ...]) -> RunError:
        """The error for a row that has not the shape of an input."""
        where = f"row {number} of `{self._columns[name]}` in `{self.name}`"
        if not isinstance(row, Tensor) and not row:
            help = "leave such rows out: `dataset.filter`"
            return RunError("SH0605", f"{where} is empty", help=help)
        shaped = f"has the shape {list(row.shape)}" if isinstance(row, Tensor) else ""
        have = shaped or f"is a `{type(row).__name__}`"
        return RunError(
            "SH0605",
            f"{where} {have}, and the model takes rows of the shape {list(shape)}",
            help="cut or pad rows; or make tokens of them by `shardlang data prepare --field`",
        )


def open_table(path: Path, split: str = "train") -> Table:
    """The table in an Arrow or Parquet file, or in a folder of `save_to_disk`.

    Raises:
        RunError: SH0651, it cannot be read, or the package that reads it is not installed.
    """
    package = _datasets(path)
    try:
        if path.is_dir():
            found = package.load_from_disk(str(path))
        elif path.suffix == ".arrow":
            found = package.Dataset.from_file(str(path))
        else:
            found = package.Dataset.from_parquet(str(path))
    except Exception as error:
        raise RunError(
            "SH0651",
            f"cannot read `{path}` as a data set: {str(error).splitlines()[0]}",
            help="check the path; a folder is one of `dataset.save_to_disk`",
        ) from error
    parts = dict(found) if isinstance(found, package.DatasetDict) else {split: found}
    if split not in parts:
        raise RunError(
            "SH0651",
            f"`{path}` has the parts {', '.join(f'`{name}`' for name in parts)}, and no `{split}`",
            help=f'name one: `data "{path.name}" (split = "{next(iter(parts), "train")}")`',
        )
    table: Table = parts[split]
    return table


def _datasets(path: Path) -> ModuleType:
    try:
        import datasets
    except ImportError:
        raise RunError(
            "SH0651",
            f"reading `{path.name}` needs the datasets package",
            help="install it with `pip install shardlang[data]`",
        ) from None
    package: ModuleType = datasets
    return package


def column(path: Path, field: str) -> Iterator[str | list[int]]:
    """The documents in a column of a table.

    Raises:
        RunError: SH0651, it cannot be read, or holds neither texts nor ids.
    """
    table = open_table(path)
    if field not in table.column_names:
        raise RunError(
            "SH0651",
            f"`{path}` has no column `{field}`; it has"
            f" {', '.join(f'`{name}`' for name in table.column_names)}",
            help="name the one that holds the text: `--field NAME`",
        )
    for rows in table.select_columns([field]).iter(batch_size=256):
        for content in rows[field]:
            yield _document(content, path, field)


def _document(content: object, path: Path, field: str) -> str | list[int]:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        ids = [one for one in content if isinstance(one, int)]
        if len(ids) == len(content):
            return ids
    raise RunError(
        "SH0651",
        f"the column `{field}` of `{path}` holds neither texts nor lists of ids",
        help="name the one that holds the text: `--field NAME`",
    )
