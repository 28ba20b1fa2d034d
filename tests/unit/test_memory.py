import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from uadray.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.full((48 << 20,), 1, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = faults()
assert keep_freed_memory()
for _ in range(8):  # until the heap has room beside what else lives there
    faults()
print(first, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the switch")
def test_freed_blocks_are_kept() -> None:
    # Transparent huge pages would hide the faults that are counted here.
    env = {"OMP_NUM_THREADS": "1", "THP_MEM_ALLOC_ENABLE": "0"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split())
    # 4 blocks of 48 MiB are 49 152 pages of 4 KiB.
    assert before > 10_000
    assert after < before / 20
