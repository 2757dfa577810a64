"""One run of the profiler from question to run directory."""

import contextlib
import datetime
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codesign import __version__
from codesign.codec import to_plain
from codesign.cost.sheet import KernelSheet
from codesign.hardware.hardware import Hardware
from codesign.hardware.memory_probe import MemoryProbe
from codesign.native import absence
from codesign.profiler.block_time import with_predictions
from codesign.profiler.candidates import Question, RunPlan, make_plan
from codesign.profiler.children import Interrupted
from codesign.profiler.discover import Catalog
from codesign.profiler.energy import idle_watt, processor_energy
from codesign.profiler.gpu_watch import DeviceLostError, GpuWatch, watching
from codesign.profiler.processors import (
    available_memory_bytes,
    last_level_cache_bytes,
    pinned_processors,
)
from codesign.profiler.reading import Reading, absent, plain_reading
from codesign.profiler.records import DEVICE_LOST, FORMAT_VERSION, Measurement
from codesign.profiler.run_folder import RunHead, keep_hardware_file, open_run
from codesign.profiler.runner import Children, Instruments, Runner
from codesign.profiler.signals import stopping
from codesign.profiler.soak import one_by_one
from codesign.profiler.system import CPU
from codesign.profiler.timing import MonotonicClock, Rule
from codesign.profiler.turn import Limits, RunSettings
from codesign.units import GIBI

MEMORY_FRACTION = 0.6  # of what is available: the rest is for the system and for what kernels allocate unannounced
GPU_MEMORY_FRACTION = 0.7  # of what the profile says: contexts, libraries' workspaces and graphs take the rest
MEMORY_UNKNOWN_BYTES = 4.0 * GIBI
VERSION = "version of "
# The same read probe gave 26 to 63 GB/s over two hours on a 2-core virtual machine.
SHARED_HOST_FACTOR = 1.8
COMPLETE, RUNNING = "complete", "running"


@dataclass(frozen=True, slots=True)
class Request:
    """What to measure, of which kernels, on which machine; `hardware_path` is None for a shipped profile.

    `sheets` of the user's own predict whole steps before they are measured.
    """

    question: Question
    catalog: Catalog
    hardware: Hardware
    hardware_path: Path | None
    rule: Rule
    environment: Mapping[str, Any]
    command: str
    repeat: int = 1
    energy: bool = False
    soak_s: float = 0.0
    sheets: tuple[KernelSheet, ...] = ()


@dataclass(frozen=True, slots=True)
class Resume:
    """What becomes of a run that lies there: deleted, continued under other conditions, suspect rows tried again."""

    force: bool = False
    force_resume: bool = False
    retry_suspect: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: its state, and the exit code of the signal or fault that ended it, if one did."""

    state: str
    exit_code: int


def cache_bytes(hardware: Hardware) -> float:
    """Return the last-level cache: the larger of what the system and the profile say."""
    stated = hardware.cache.capacity_bytes if hardware.cache else 0.0
    return max(stated, last_level_cache_bytes() or 0.0) if hardware.kind == "cpu" else stated


def memory_limit_bytes(question: Question, hardware: Hardware) -> float:
    """Return what the processes of a run may take together: of the GPU's memory, where kernels run on one."""
    if question.device == "cuda":
        return GPU_MEMORY_FRACTION * hardware.memory.capacity_bytes
    available = available_memory_bytes()
    return MEMORY_UNKNOWN_BYTES if available is None else MEMORY_FRACTION * available


def critical_conditions(request: Request) -> dict[str, str]:
    """Return what decides the speed of all cases: another value of any of these makes another measurement."""
    versions = {
        f"{VERSION}{state.name}": state.version or "absent"
        for state in request.catalog.states
        if state.name in request.question.libraries and state.device == request.question.device
    }
    counts = request.question.threads if request.question.device == "cpu" else ()
    threads = {f"processors of {n} threads": str(list(pinned_processors(n))) for n in counts}
    driver = request.environment["gpu_driver"]
    return {
        "processor": processor_name(),
        "GPU driver": driver if isinstance(driver, str) else "absent",
        "cache of weights": request.question.cache,
        **versions,
        **threads,
    }


def processor_name() -> str:
    """Return what the processor calls itself; where it does not, its architecture."""
    return str(CPU["model"](Path("/")).value or CPU["architecture"](Path("/")).value)


def plan_run(request: Request) -> RunPlan:
    """Return what the request comes to here."""
    # A library's version is in the keys of its own cases; a change of it does not concern those of others.
    shared = {name: text for name, text in critical_conditions(request).items() if not name.startswith(VERSION)}
    plan = make_plan(request.question, request.catalog, shared, cache_bytes(request.hardware))
    plan = one_by_one(plan) if request.soak_s else plan
    return plan if request.question.blocks is None else with_predictions(plan, request.hardware, request.sheets)


def measure(
    request: Request, plan: RunPlan, folder: Path, report: Callable[[Measurement], None], resume: Resume = Resume()
) -> Outcome:
    """Measure a plan into a run directory, or what is left of it; the last states are in its run.json."""
    with contextlib.ExitStack() as stack:
        head = _head(request, plan)
        opened = open_run(folder, head, force=resume.force, force_resume=resume.force_resume)
        writer = stack.enter_context(opened)
        if request.hardware_path is not None:
            keep_hardware_file(folder, request.hardware_path)
        if resume.retry_suspect:
            writer.done -= writer.disturbed
        watch = stack.enter_context(watching()) if "cuda" in devices_of(plan) else None
        at_rest = idle_powers(request, plan, watch)
        writer.note_energy({name: plain_reading(one) for name, one in at_rest.items()})
        children = Children(request.catalog.modules)
        stop = stack.enter_context(stopping(children.kill_all))
        try:
            instruments = Instruments(watch, _memory_probe(plan, request.hardware, stack))
            Runner(writer, _run_settings(request, at_rest, watch), children, stop, report, instruments).run(plan)
            outcome = Outcome(COMPLETE, 0)
        except Interrupted:
            outcome = Outcome(f"interrupted by {stop.signal_name}", stop.exit_code)
        except DeviceLostError as error:
            outcome = Outcome(f"{DEVICE_LOST}: {error}", error.exit_code)
        writer.finish(outcome.state)
        return outcome


def _run_settings(request: Request, at_rest: Mapping[str, Reading[float]], watch: GpuWatch | None) -> RunSettings:
    return RunSettings(
        hw=request.hardware.name,
        modules=request.catalog.modules,
        seed=request.question.seed,
        rule=request.rule,
        memory_limit_bytes=memory_limit_bytes(request.question, request.hardware),
        limits=limits_of(request.hardware),
        repeat=request.repeat,
        idle_watt=at_rest,
        usual_clock_hz=None if watch is None else watch.usual_clock_hz,
    )


def _memory_probe(plan: RunPlan, hardware: Hardware, stack: contextlib.ExitStack) -> MemoryProbe | None:
    """Return what measures memory beside kernels of the CPU, None where there are none or nothing can."""
    if "cpu" not in devices_of(plan) or absence():
        return None
    return stack.enter_context(contextlib.closing(MemoryProbe(cache_bytes(hardware))))


def devices_of(plan: RunPlan) -> list[str]:
    """Return the kinds of devices on which kernels of a plan run."""
    return sorted({entry.kernel.device for entry in plan.entries})


def idle_powers(request: Request, plan: RunPlan, watch: GpuWatch | None) -> dict[str, Reading[float]]:
    """Return the power at rest of each device of a plan, measured now, or why its energy is not measured."""
    if not request.energy:
        return dict.fromkeys(devices_of(plan), absent("not asked for; --energy measures it"))
    return {device: _idle_power(watch if device == "cuda" else None) for device in devices_of(plan)}


def _idle_power(watch: GpuWatch | None) -> Reading[float]:
    if watch is not None:
        return watch.idle_watt()
    return idle_watt(processor_energy(), MonotonicClock(), time.sleep)


def limits_of(hardware: Hardware) -> Limits:
    """Return what no kernel can exceed; a measured bandwidth is no peak: neighbours on a shared host move it."""
    source = hardware.sources.get("memory.bandwidth_gb_per_s")
    headroom = SHARED_HOST_FACTOR if source is not None and source.kind == "measured" else 1.0
    bytes_per_s = headroom * hardware.memory.bandwidth_bytes_per_s
    return Limits(bytes_per_s, hardware.peak_flop_per_s, cache_bytes(hardware))


def _head(request: Request, plan: RunPlan) -> RunHead:
    commit = request.environment["software"]["commit"]
    return RunHead(
        format_version=FORMAT_VERSION,
        codesign_version=__version__,
        commit=commit if isinstance(commit, str) else "",
        command=request.command,
        hw=request.hardware.name,
        seed=request.question.seed,
        settings=_settings(request),
        critical=critical_conditions(request),
        environment=request.environment,
        candidates=plan.candidates,
        skipped=plan.skipped,
        started_utc=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        state=RUNNING,
    )


def _settings(request: Request) -> Mapping[str, Any]:
    """Return the question and the rule: a run directory holds the answers to one question."""
    question: dict[str, Any] = to_plain(request.question)
    rule = {
        "rule": to_plain(request.rule),
        "repeat": request.repeat,
        "energy": request.energy,
        "soak_s": request.soak_s,
    }
    return {**question, **rule, "modules": list(request.catalog.modules)}
