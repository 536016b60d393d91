"""Tests of keeping freed memory."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from lwr.cli import allocator
from lwr.cli.allocator import VARIABLES, keep_freed_memory

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
COUNT_FAULTS = """
import resource, sys, torch
from lwr.cli.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def fill():
    return [torch.ones(2**21) for _ in range(8)]  # 64 MiB, of which glibc gives back most when they are freed
for _ in range(3):
    fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def count_faults(how: str) -> int:
    run = [sys.executable, "-c", COUNT_FAULTS, how]
    return int(subprocess.run(run, capture_output=True, text=True, check=True).stdout)


@needs_glibc
def test_kept_memory_is_not_asked_for_again(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert count_faults("keep") < count_faults("plain") / 10


@pytest.mark.parametrize("name", VARIABLES)
def test_a_users_variable_counts(name, monkeypatch):
    monkeypatch.setenv(name, "131072")
    assert not keep_freed_memory()


def test_nothing_is_set_without_glibc(monkeypatch):
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
