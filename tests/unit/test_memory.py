import platform
import subprocess
import sys

import pytest

from uadray.memory import ONE_ARENA

PROGRAM = """
import resource, threading, torch
from uadray.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.full((80 << 20,), 1, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def measure():
    first = faults()
    assert keep_freed_memory()
    for _ in range(8):  # until the heap has room beside what else lives there
        faults()
    print(first, faults())

"""

IN_A_THREAD = """
thread = threading.Thread(target=measure)
thread.start()
thread.join()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the switch")
@pytest.mark.parametrize("where", ["measure()", IN_A_THREAD], ids=["main thread", "thread"])
def test_freed_blocks_are_kept(where: str) -> None:
    # Transparent huge pages would hide the faults that are counted here.
    env = {"OMP_NUM_THREADS": "1", "THP_MEM_ALLOC_ENABLE": "0"} | ONE_ARENA
    command = [sys.executable, "-c", PROGRAM + where]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split())
    # 4 blocks of 80 MiB are 81 920 pages of 4 KiB.
    assert before > 10_000
    assert after < before / 20
