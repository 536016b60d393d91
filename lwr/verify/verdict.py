"""Collect the faults of a results tree, and compare files with the checksums that were recorded of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from lwr.common.errors import first_line
from lwr.common.hashing import sha256

REMAKE = "remove it and run the workflow again"
"""How to fix a file that is not what its step wrote."""


@dataclass
class Verdict:
    """The faults of a results tree, the notes on its leftovers, and the number of files that were read."""

    faults: list[str] = field(default_factory=list)  # a line each
    notes: list[str] = field(default_factory=list)  # a line each
    files: int = 0

    def check(self, path: Path, faults: Iterable[str]) -> None:
        """Add the faults of a file or folder. An error that ends the search for them is a fault as well.

        Args:
            path: The file or folder to check. If it is missing, that is the only fault.
            faults: The faults, one line each, found while they are iterated.
        """
        if not path.exists():
            self.faults.append(f"{path}: missing; run the workflow again")
            return
        self.files += 1 if path.is_file() else sum(file.is_file() for file in path.rglob("*"))
        try:
            for fault in faults:
                self._add(path, fault)
        except KeyError as error:
            self._add(path, f"no {first_line(error)}; {REMAKE}")
        except (ValueError, OSError, TypeError) as error:
            text = first_line(error)
            self._add(path, text if str(path) in text else f"{text}; {REMAKE}")

    def _add(self, path: Path, fault: str) -> None:
        line = fault if str(path) in fault else f"{path}: {fault}"
        if line not in self.faults:  # several files may depend on the same broken one
            self.faults.append(line)


class Checksums:
    """SHA-256 of files, each computed once."""

    def __init__(self) -> None:
        self.sha256 = cache(sha256)

    def changed_inputs(self, recorded: Mapping[str, str], inputs: Mapping[str, Path]) -> Iterator[str]:
        """Find inputs that are not the ones that a file was made of.

        Args:
            recorded: Name of an input -> its checksum when the file was made.
            inputs: Name of an input -> its path now.
        """
        for name, file in inputs.items():
            if name not in recorded:
                yield f"does not record which {name} it was made of; {REMAKE}"
            elif not file.is_file():
                yield f"was made of {file}, which is missing; run the workflow again"
            elif recorded[name] != self.sha256(file):
                yield f"was made of another {file} than is there now; {REMAKE}, or put that file back"
