"""Tests of keeping freed memory."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys

import pytest

from lwr.cli import allocator
from lwr.cli.allocator import VARIABLES, keep_freed_memory

has_mallinfo2 = platform.libc_ver()[0] == "glibc" and hasattr(ctypes.CDLL(None), "mallinfo2")  # glibc >= 2.33
PRINT_MEMORY = """
import ctypes, sys
from lwr.cli.allocator import keep_freed_memory

class Memory(ctypes.Structure):  # struct mallinfo2 of malloc.h
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Memory
libc.malloc.argtypes, libc.malloc.restype, libc.free.argtypes = [ctypes.c_size_t], ctypes.c_void_p, [ctypes.c_void_p]
if sys.argv[1] == "keep":
    assert keep_freed_memory()
before = libc.mallinfo2()
pieces = [libc.malloc(15 * 2**20) for _ in range(4)]
mapped = libc.mallinfo2().hblkhd - before.hblkhd  # bytes in pieces that glibc always gives back when they are freed
for piece in pieces:
    libc.free(piece)
kept = libc.mallinfo2().fordblks - before.fordblks  # bytes that are free and not given back
print(mapped / 2**20, kept / 2**20)
"""


def measure_memory(how: str) -> tuple[float, float]:
    """Allocate and free 60 MiB in a new process; return how many MiB would be given back, and how many were kept."""
    run = [sys.executable, "-c", PRINT_MEMORY, how]
    mapped, kept = subprocess.run(run, capture_output=True, text=True, check=True).stdout.split()
    return float(mapped), float(kept)


@pytest.mark.skipif(not has_mallinfo2, reason="needs glibc 2.33 or later, which tells how much is free")
def test_freed_memory_is_kept(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    mapped, kept = measure_memory("keep")
    assert mapped == 0
    assert kept > 55
    mapped, kept = measure_memory("plain")
    assert mapped > 55
    assert kept < 5


@pytest.mark.parametrize("name", VARIABLES)
def test_a_users_variable_counts(name, monkeypatch):
    monkeypatch.setenv(name, "131072")
    assert not keep_freed_memory()


def test_nothing_is_set_without_glibc(monkeypatch):
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
