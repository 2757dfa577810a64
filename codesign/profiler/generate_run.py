"""One run of a generating model, from question to run directory: first token and further tokens, with predictions."""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from codesign import __version__
from codesign.codec import to_plain
from codesign.cost.deployment import Assignment, deploy
from codesign.cost.inference import InferencePrediction, predict_inference
from codesign.hardware.hardware import Hardware
from codesign.model.groups import fused_groups
from codesign.model.layers import Model
from codesign.plan.file import Plan
from codesign.profiler.block_time import prediction_notes
from codesign.profiler.child import pin
from codesign.profiler.generate import (
    Decoder,
    LogitsCheck,
    Replacement,
    load_transformer,
    peak_memory_bytes,
    replace_layers,
    replacements,
    reset_peak_memory,
    seeded_prompt,
)
from codesign.profiler.libraries import library_states, torch_cpu
from codesign.profiler.load import LoadChange, load_change, read_load
from codesign.profiler.processors import pinned_processors
from codesign.profiler.records import FORMAT_VERSION, Measurement, Procedure, ServingCase, record_key
from codesign.profiler.run_folder import RunHead, keep_hardware_file, open_run
from codesign.profiler.statistics import percentile_needs
from codesign.profiler.timing import MonotonicClock, Rule, Sampling, Timer, Work, take_round, warm_up
from codesign.profiler.verdict import Ceilings, Conditions, judge
from codesign.schemes.catalog import parse_scheme
from codesign.schemes.kv import parse_kv
from codesign.schemes.storage import weight_bytes
from codesign.setting import Setting

Figure = Literal["ttft_s", "tpot_s"]
LIBRARY, UNREPLACED = "torch", "linear"  # of a model that runs as it is
KV_FORMAT = "bf16"
COMPLETE, RUNNING = "complete", "running"
HIGHEST_PERCENTILE = 0.99


@dataclass(frozen=True, slots=True)
class GenerateQuestion:
    """What is to generate; `plan` is None for a model that runs as it is."""

    path: Path
    model: Model
    plan: Plan | None
    prompt_tokens: int
    new_tokens: int
    threads: int
    libraries: tuple[str, ...]
    seed: int


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """A question, where it is answered, and how."""

    question: GenerateQuestion
    hardware: Hardware
    hardware_path: Path | None
    rule: Rule
    environment: Mapping[str, Any]
    command: str
    sheet_files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sampled:
    """The samples of one figure and what else happened meanwhile."""

    sampling: Sampling
    load: LoadChange
    started_utc: str


def measure_generation(request: GenerateRequest, folder: Path, *, force: bool = False) -> None:
    """Load the model, replace its layers, check, time and write both rows into a run directory."""
    asked = request.question
    chosen = replacements(asked.model, asked.plan, asked.libraries, asked.threads)
    with open_run(folder, _head(request, chosen), force=force) as writer:
        if request.hardware_path is not None:
            keep_hardware_file(folder, request.hardware_path)
        for measurement in _measurements(request, chosen):
            writer.append(measurement)
        writer.finish(COMPLETE)


def _measurements(request: GenerateRequest, chosen: tuple[Replacement, ...]) -> tuple[Measurement, ...]:
    asked = request.question
    pin(pinned_processors(asked.threads))
    torch_cpu.start(asked.threads)
    for library in {one.kernel.library.name: one.kernel.library for one in chosen}.values():
        library.start(asked.threads)
    prompt = seeded_prompt(asked.model.vocabulary, asked.prompt_tokens, asked.seed)
    transformer = load_transformer(asked.path)
    logits = replace_layers(transformer, chosen, prompt)
    decoder = Decoder(transformer, prompt, asked.new_tokens)
    reset_peak_memory()
    first = _sample(decoder.prefill_work, request.rule)
    further = _sample(decoder.decode_work, replace(request.rule, min_samples=percentile_needs(HIGHEST_PERCENTILE)))
    seen = {"peak_memory_bytes": peak_memory_bytes(), **_logits_notes(logits)}
    predicted = _predicted(request, chosen)
    rows: tuple[tuple[Figure, Sampled], ...] = (("ttft_s", first), ("tpot_s", further))
    return tuple(
        _row(request, chosen, figure, sampled, logits, {**seen, **predicted[figure]}) for figure, sampled in rows
    )


def _sample(work: Work, rule: Rule) -> Sampled:
    started_utc, before = _now_utc(), read_load()
    timer = Timer(work, MonotonicClock())
    found = warm_up(timer, rule)
    sampling = Sampling(found, rule)
    while sampling.stop_reason() is None:
        sampling = sampling.add(take_round(timer, found, sampling.next_sample_count()))
    return Sampled(sampling, load_change(before, read_load()), started_utc)


def _logits_notes(logits: LogitsCheck) -> Mapping[str, Any]:
    return {"logits_max_difference": logits.max_difference, "same_next_token": logits.same_next_token}


def scheme_text(chosen: tuple[Replacement, ...]) -> str:
    """Return the schemes of the replaced layers, or the unreplaced one."""
    return "+".join(dict.fromkeys(one.case.scheme for one in chosen)) or "BF16"


def assignment_of(model: Model, chosen: tuple[Replacement, ...]) -> Assignment:
    """Return what really runs: the replaced layers in their schemes, all others in bf16."""
    schemes = {one.layer.name: parse_scheme(one.case.scheme) for one in chosen}
    groups, plain = fused_groups(model), parse_scheme("BF16")
    of_groups = tuple(schemes.get(group.layers[0].name, plain) if group.layers else plain for group in groups)
    return Assignment(groups, of_groups, plain, parse_kv(KV_FORMAT))


def predict_generation(request: GenerateRequest, chosen: tuple[Replacement, ...]) -> InferencePrediction:
    """Return the prediction of the whole model as it runs; CodesignError where its library is not known to codesign."""
    asked = request.question
    setting = Setting(
        prompt_tokens=asked.prompt_tokens,
        output_tokens=asked.new_tokens,
        library=_library(chosen),
        engine="transformers",
        thread_count=asked.threads if request.hardware.kind == "cpu" else None,
        sheet_files=request.sheet_files,
    )
    where = deploy(request.hardware, asked.model, setting)
    in_torch = replace(where, target=replace(where.target, program_library=LIBRARY, program_kernel=UNREPLACED))
    return predict_inference(in_torch, assignment_of(asked.model, chosen))


def _predicted(request: GenerateRequest, chosen: tuple[Replacement, ...]) -> Mapping[Figure, Mapping[str, Any]]:
    return {
        "ttft_s": prediction_notes(lambda: predict_generation(request, chosen).ttft_s),
        "tpot_s": prediction_notes(lambda: predict_generation(request, chosen).tpot_s),
    }


def _row(
    request: GenerateRequest,
    chosen: tuple[Replacement, ...],
    figure: Figure,
    sampled: Sampled,
    logits: LogitsCheck,
    notes: Mapping[str, Any],
) -> Measurement:
    sampling, case = sampled.sampling, _case(request.question, chosen, figure)
    conditions = Conditions(
        stop_reason=sampling.stop_reason(),
        clock_gaps=sampling.gap_count,
        output_error=None if logits.check.passed else logits.check.reason,
        load=sampled.load,
    )
    library, kernel, version = _library(chosen), _kernel(chosen), _version(chosen)
    read_bytes, flop = _work(request.question, chosen, figure)
    return Measurement(
        key=record_key(library, version, kernel, case, {}),
        hw=request.hardware.name,
        library=library,
        library_version=version,
        kernel=kernel,
        case=case,
        samples_s=sampling.samples_s,
        summary=sampling.summary(),
        read_bytes=read_bytes,
        flop=flop,
        math_dtype="bf16",
        check=logits.check,
        procedure=_procedure(sampled, request.question, notes),
        conditions=conditions,
        verdict=judge(sampling.summary(), conditions, Ceilings(read_bytes, flop)),
    )


def _library(chosen: tuple[Replacement, ...]) -> str:
    return "+".join(dict.fromkeys(one.kernel.library.name for one in chosen)) or LIBRARY


def _kernel(chosen: tuple[Replacement, ...]) -> str:
    return "+".join(dict.fromkeys(one.kernel.row.name for one in chosen)) or UNREPLACED


def _version(chosen: tuple[Replacement, ...]) -> str:
    versions = {state.name: state.version or "" for state in library_states()}
    return "+".join(versions.get(name, "") for name in _library(chosen).split("+"))


def _case(asked: GenerateQuestion, chosen: tuple[Replacement, ...], figure: Figure) -> ServingCase:
    return ServingCase(
        model=asked.model.name,
        scheme=scheme_text(chosen),
        kv_format=KV_FORMAT,
        gpus=1,
        concurrency=1,
        prompt_tokens=asked.prompt_tokens,
        output_tokens=asked.new_tokens,
        figure=figure,
        threads=asked.threads,
    )


def _work(asked: GenerateQuestion, chosen: tuple[Replacement, ...], figure: Figure) -> tuple[float, float]:
    """Return the bytes of weights that a pass reads, and its operations without those of attention."""
    assignment = assignment_of(asked.model, chosen)
    read_bytes = sum(
        weight_bytes(scheme, group.n, group.k)
        for group, scheme in zip(assignment.groups, assignment.schemes, strict=True)
    )
    rows = asked.prompt_tokens if figure == "ttft_s" else 1
    in_blocks = sum(group.weight_count for group in assignment.groups if group.block_index is not None)
    return float(read_bytes), 2.0 * (rows * in_blocks + asked.model.head.weight_count)


def _procedure(sampled: Sampled, asked: GenerateQuestion, notes: Mapping[str, Any]) -> Procedure:
    return Procedure(
        started_utc=sampled.started_utc,
        affinity=pinned_processors(asked.threads),
        copies=1,
        warm_up=sampled.sampling.found,
        round_sizes=tuple(len(one.samples_s) for one in sampled.sampling.rounds),
        notes=notes,
    )


def _head(request: GenerateRequest, chosen: tuple[Replacement, ...]) -> RunHead:
    asked, commit = request.question, request.environment["software"]["commit"]
    return RunHead(
        format_version=FORMAT_VERSION,
        codesign_version=__version__,
        commit=commit if isinstance(commit, str) else "",
        command=request.command,
        hw=request.hardware.name,
        seed=asked.seed,
        settings={"case": to_plain(_case(asked, chosen, "tpot_s")), "rule": to_plain(request.rule)},
        critical={_library(chosen): _version(chosen)},
        environment=request.environment,
        candidates=(f"{_library(chosen)}/{_kernel(chosen)} {scheme_text(chosen)} x{asked.threads}",),
        skipped=(),
        started_utc=_now_utc(),
        state=RUNNING,
    )


def _now_utc() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
