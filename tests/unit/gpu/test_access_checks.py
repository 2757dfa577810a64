"""The emulation finds what is planted in kernels, and nothing in their correct twins."""

import shutil
from pathlib import Path

import pytest
import torch

from codesign.gpu.launch import Launch
from codesign.gpu.program import program
from tests.gpu import emulated_gpu
from tests.gpu.emulated_gpu import COMPILER, AccessError, EmulatedGpu

pytestmark = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"needs {COMPILER}")

PLANTED = program(str(Path(emulated_gpu.__file__).parent / "planted"))
THREADS, SHARED_BYTES = 32, 512

# What is said of each kernel: of one block, of three, and of three with counters.
IN_A_BLOCK = {
    "read_before_barrier": "race: thread 1 .* reads 4 bytes at shared memory [+] 0 of 512, which thread 0 .* wrote",
    "load_before_barrier": "race: thread 1 .* reads 16 bytes at shared memory [+] 0 of 512, which thread 0 .* wrote",
    "write_after_read": "race: thread 15 .* writes .* which thread 31 .* read, without a sync_block between",
    "exchange_is_no_barrier": "race: thread 31 .* reads .* which thread 30 .* wrote, without a sync_block",
    "threads_write_the_same": "race: thread 1 .* writes .* argument 1 [+] 0 of 128, which thread 0 .* wrote",
    "bytes_overlap": "race: thread 1 .* writes 2 bytes at argument 1 [+] 0 of 128, which thread 0",
    "never_written": r"not written: thread 3 of block \(0, 0, 0\) reads 4 bytes at shared memory [+] 12 of 512",
    "write_past_the_end": "out of bounds: thread 31 .* writes 4 bytes at argument 1 [+] 128 of 128",
    "write_before_the_begin": "out of bounds: thread 0 .* writes 4 bytes at argument 1 - 4 of 128",
    "write_past_shared_memory": "out of bounds: thread 31 .* writes 4 bytes at shared memory [+] 512 of 512",
    "store_past_the_end": "out of bounds: thread 7 .* writes 16 bytes at argument 1 [+] 128 of 128",
    "read_past_the_end": "out of bounds: thread 0 .* reads 4 bytes at argument 1 [+] 128 of 128",
    "load_past_the_end": "out of bounds: thread 0 .* reads 16 bytes at argument 1 [+] 128 of 128",
    "load_once_past_the_end": "out of bounds: thread 0 .* reads 16 bytes at argument 1 [+] 128 of 128",
    "copy_past_the_end": "out of bounds: thread 0 .* reads 16 bytes at argument 1 [+] 128 of 128",
    "copy_of_many_words_past_the_end": "out of bounds: thread 0 .* reads 44 bytes at argument 1 [+] 88 of 128",
    "load_for_nothing": "out of bounds: thread 0 .* reads 16 bytes at argument 1 [+] 128 of 128",
    "load_between_words": "misaligned: thread 0 .* reads 16 bytes at argument 1 [+] 12 of 128",
    "read_between_words": "misaligned: thread 0 .* reads 4 bytes at argument 1 [+] 6 of 128",
    "another_s_variable": "out of bounds: thread 31 .* reads 4 bytes at",
    "threads_wait_for_one_that_ended": r"stuck: block \(0, 0, 0\) has 31 threads that wait",
    "lanes_wait_for_one_that_does_not_exchange": r"stuck: block \(0, 0, 0\) has 31 threads that wait",
}
OF_BLOCKS = {
    "written_by_a_block_before": r"not written: .* of block \(1, 0, 0\) reads 4 bytes at shared memory",
    "blocks_write_the_same": r"race: thread 0 of block \(1, 0, 0\) writes .* which .* of block \(0, 0, 0\) wrote, "
    "without fence, count_up and fence between",
    "block_reads_what_another_wrote": r"race: thread 0 of block \(1, 0, 0\) reads .* argument 1 [+] 0 .* wrote",
    "block_writes_what_another_read": r"race: thread 0 of block \(1, 0, 0\) writes .* argument 1 [+] 0 .* read",
}
OF_COUNTERS = {
    "add_up_with_fences_of_one": r"race: .*block \(2, 0, 0\) reads .* argument 1 .* which .*block \(0, 0, 0\) wrote",
    "counter_is_read_while_others_count": r"race: .*block \(1, 0, 0\) reads .* argument 2 [+] 0",
    "counters_differ": r"race: .*block \(2, 0, 0\) reads .* argument 1 [+] 0 of 384, which .*block \(0, 0, 0\) wrote",
}
KERNELS = [
    *((name, 1, 0, said) for name, said in IN_A_BLOCK.items()),
    *((name, 3, 0, said) for name, said in OF_BLOCKS.items()),
    *((name, 3, 2, said) for name, said in OF_COUNTERS.items()),
]


def launch(kernel: str, blocks: int, more_tensors: int, flag: int, backwards: bool = False) -> list[torch.Tensor]:
    tensors = [torch.zeros(THREADS * blocks, dtype=torch.int32) for _ in range(1 + more_tensors)]
    gpu = EmulatedGpu(backwards=backwards)
    gpu.launch(Launch(PLANTED, kernel, (blocks, 1, 1), THREADS, SHARED_BYTES), (*tensors, flag))
    return tensors


@pytest.mark.parametrize(("kernel", "blocks", "more_tensors", "said"), KERNELS, ids=[one[0] for one in KERNELS])
def test_what_is_wrong_is_found_and_its_twin_passes(kernel, blocks, more_tensors, said):
    launch(kernel, blocks, more_tensors, 1)
    with pytest.raises(AccessError, match=f"planted, {kernel}: {said}"):
        launch(kernel, blocks, more_tensors, 0)


STEPS = {"fence before": 1, "barrier before": 2, "barrier after": 4, "fence after": 8}
ALL_STEPS = sum(STEPS.values())


def test_blocks_that_hand_over_by_a_counter_pass():
    _, arrived, out = launch("add_up", 3, 2, ALL_STEPS)
    assert out[:THREADS].tolist() == [3 * (1 + (i + 1) % THREADS) for i in range(THREADS)]
    assert arrived[0] == 0


@pytest.mark.parametrize("missing", STEPS)
def test_each_step_of_handing_over_by_a_counter_is_needed(missing):
    with pytest.raises(AccessError, match=r"race|not written"):
        launch("add_up", 3, 2, ALL_STEPS - STEPS[missing])


def test_a_kernel_that_relies_on_the_order_of_blocks_is_found_by_another_order():
    launch("count_is_not_looked_at", 3, 2, 0)
    launch("count_is_not_looked_at", 3, 2, 1, backwards=True)
    with pytest.raises(AccessError, match=r"race: .*block \(0, 0, 0\) writes .* which .*block \(1, 0, 0\) read"):
        launch("count_is_not_looked_at", 3, 2, 0, backwards=True)


@pytest.mark.parametrize(("kernel", "lines_below"), [("write_past_the_end", 0), ("load_once_past_the_end", 1)])
def test_the_line_of_the_access_is_named(kernel, lines_below):
    lines = PLANTED.path.read_text(encoding="utf-8").split("\n")
    (first,) = (i for i, text in enumerate(lines, 1) if f"void {kernel}(" in text)
    with pytest.raises(AccessError, match=rf", at cuda\.cu:{first + lines_below}$"):
        launch(kernel, 1, 0, 0)


def test_what_is_not_given_is_not_touched():
    with pytest.raises(AccessError, match=r"out of bounds: thread 0 .* writes 4 bytes at an address far from"):
        EmulatedGpu().launch(Launch(PLANTED, "write_past_the_end", (1, 1, 1), THREADS, 0), (None, 1))
