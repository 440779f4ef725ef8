"""What a training keeps of the memory that it frees."""

import subprocess
import sys

FAULTS = """
import resource, sys
import torch
from training.memory import keep_freed_memory

if "keep" in sys.argv:
    assert keep_freed_memory()
for number in range(30):  # glibc takes new memory for the first few
    if number == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensor = torch.ones(1 << 24)
    del tensor
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(*options: str) -> int:
    ended = subprocess.run([sys.executable, "-c", FAULTS, *options], capture_output=True, text=True, check=True)
    return int(ended.stdout)


def test_memory_that_was_freed_is_taken_again_without_page_faults() -> None:
    pages_of_a_tensor = (1 << 26) // 4096
    assert page_faults() > 9 * pages_of_a_tensor
    assert page_faults("keep") < pages_of_a_tensor
