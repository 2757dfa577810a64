import contextlib
import os
from pathlib import Path

import pytest

from codesign.hardware.detect import Processor, detect_processor
from codesign.hardware.file import load_hardware, parse_hardware
from codesign.hardware.local import Provenance, local_profile, profile_name
from codesign.hardware.memory_probe import MemoryProbe
from codesign.hardware.probe import Bandwidth, Measured, Roofs, thread_counts
from codesign.hardware.threads import with_threads
from codesign.native import absence

CPUINFO = """processor\t: 0
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC 9654 96-Core Processor
flags\t\t: fpu avx2 fma f16c avx512f avx512bw avx512_vnni

processor\t: 1
model name\t: another
"""


def processor(**changes: object) -> Processor:
    fields = {"title": 'A "quoted" CPU', "vendor": "amd", "machine": "x86_64", "isa": ("avx2",), "core_count": 2,
              "cache_bytes": 32 * 2**20, "memory_bytes": 24 * 2**30} | changes  # fmt: skip
    return Processor(**fields)  # type: ignore[arg-type]


def roofs() -> Roofs:
    one = Measured(1.0, 0.01)
    widths = tuple(
        Bandwidth(threads, size, Measured(rate * 1e9, 0.02), Measured(rate * 1e9, 0.02))
        for threads, size, rate in ((1, 2**22, 90), (1, 2**29, 34), (2, 2**22, 180), (2, 2**29, 37))
    )
    peaks = {("fp32", 1): Measured(117e9, 0.0), ("fp32", 2): Measured(234e9, 0.0)}
    return Roofs("avx2", widths, peaks, Measured(3.66e9, 0.0), one, {1: Measured(1e-7, 0.0), 2: Measured(1e-6, 9.0)})


@pytest.mark.skipif(absence() is not None, reason="needs the native kernels")
def test_memory_is_probed_in_place_and_the_caller_stays_where_it_may_run():
    allowed = os.sched_getaffinity(0)
    with contextlib.closing(MemoryProbe(8e6)) as probe:
        rates = [probe.bytes_per_s(1, (max(allowed),)), probe.bytes_per_s(min(2, len(allowed)), tuple(sorted(allowed)))]
    assert os.sched_getaffinity(0) == allowed
    assert all(1e9 < rate < 1e13 for rate in rates)


def test_the_system_s_words_become_a_processor(tmp_path: Path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(CPUINFO)
    (tmp_path / "proc/meminfo").write_text("MemFree: 1 kB\nMemTotal:       1024 kB\n")
    for index, (kind, size) in enumerate((("Data", "32K"), ("Instruction", "64M"), ("Unified", "16M"))):
        cache = tmp_path / f"sys/devices/system/cpu/cpu0/cache/index{index}"
        cache.mkdir(parents=True)
        (cache / "type").write_text(kind + "\n")
        (cache / "size").write_text(size + "\n")
    found = detect_processor(tmp_path)
    assert (found.title, found.vendor) == ("AMD EPYC 9654 96-Core Processor", "amd")
    assert found.isa == ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni")
    assert (found.cache_bytes, found.memory_bytes) == (16 * 2**20, 2**20)


def test_a_silent_system_is_no_error(tmp_path: Path):
    found = detect_processor(tmp_path)
    assert (found.cache_bytes, found.memory_bytes, found.isa) == (None, None, ())
    assert found.core_count >= 1


@pytest.mark.parametrize(("cores", "expected"), [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (8, (1, 2, 4, 8))])
def test_thread_counts_double_up_to_all_cores(cores, expected):
    assert thread_counts(cores) == expected


def test_the_profile_of_what_was_measured_loads():
    text = local_profile("mine", processor(), roofs(), Provenance("2026-11-21", "codesign hw measure"))
    hardware = parse_hardware(text, "mine.yaml")
    assert hardware.name == "mine"
    assert hardware.memory.sustained_bytes_per_s == pytest.approx(37e9)
    assert dict(hardware.memory.thread_bytes_per_s) == pytest.approx({1: 34e9, 2: 37e9})
    assert hardware.cache is not None
    assert hardware.cache.bandwidth_bytes_per_s == pytest.approx(180e9)
    assert dict(hardware.peak_flop_per_s) == pytest.approx({"fp32": 234e9})
    assert hardware.sources["launch_overhead_us"].confidence == "low"  # its samples scattered
    one = with_threads(hardware, 1)
    assert one.memory.sustained_bytes_per_s == pytest.approx(34e9)
    assert one.peak_flop_per_s["fp32"] == pytest.approx(117e9)


def test_a_profile_without_a_known_cache_loads():
    text = local_profile("mine", processor(cache_bytes=None), roofs(), Provenance("2026-11-21", "x"))
    assert parse_hardware(text, "mine.yaml").cache is None


def test_threads_of_a_machine_nobody_measured_keep_its_bandwidth():
    hardware = load_hardware("x86-avx512")
    assert with_threads(hardware, 1).memory == hardware.memory


def test_a_name_is_made_of_the_title():
    assert profile_name(processor(title="AMD EPYC(tm) 9654")) == "amd-epyc-tm-9654-2-core"
    assert profile_name(processor(title="??")) == "local-2-core"


@pytest.mark.slow
@pytest.mark.skipif(absence() is not None, reason=str(absence()))
def test_this_machine_can_be_measured():
    from codesign.hardware.probe import measure_roofs

    found = measure_roofs()
    smallest = min(found.bandwidths, key=lambda one: (one.threads, one.working_set_bytes))
    assert smallest.read_bytes_per_s.value > found.memory_bandwidth(1).read_bytes_per_s.value
    assert found.peak_flop_per_s["fp32", 1].value > found.clock_hz.value  # more than one flop a cycle
