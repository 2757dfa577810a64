"""Reads the rows of the published table as cases in our words; what cannot be said in them raises UnmappedError."""

import re
from dataclasses import dataclass, replace

import pandas as pd
import published_words as words
from measured_rows import reference_folder

from codesign.cost.deployment import Assignment, Deployment, deploy, uniform_assignment
from codesign.hardware.file import load_hardware
from codesign.hardware.hardware import Hardware
from codesign.hardware.threads import with_threads
from codesign.model.file import load_model
from codesign.model.layers import Model
from codesign.schemes.catalog import parse_scheme
from codesign.schemes.scheme import Scheme
from codesign.setting import Setting

DROPPED_NOTES = ("exclude from", "suspect", "low confidence")
MEMORY_METRICS = frozenset({"weight_mem", "peak_mem"})
PREFILL_METRICS = frozenset({"prefill_tps", "ttft", "forward_latency"})
STEP_METRICS = frozenset({"decode_tps", "time_per_token_amortised"})


class UnmappedError(Exception):
    """A row says something for which we have no word; the text is the reason."""


@dataclass(frozen=True, slots=True)
class Case:
    """One published row in our words; lengths that the source leaves out are None."""

    source: str
    metric: str
    hardware: Hardware
    model: Model
    scheme: str
    mix: words.Mix | None
    kv: str
    program: words.Program
    gpu_count: int
    batch: int
    prompt_tokens: int | None
    output_tokens: int | None
    cached_tokens: int
    saturated: bool
    value: float
    unit: str
    allocator_only: bool


def published_frame() -> pd.DataFrame:
    """Return the rows of the published table without those that its notes exclude, empty text for what is absent."""
    path = reference_folder() / "facts" / "published_speed.csv"
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    dropped = frame["note"].str.lower().str.contains("|".join(DROPPED_NOTES))
    return frame[~dropped].reset_index(drop=True)


def read_case(row: dict[str, str]) -> Case:
    """Return one row in our words; UnmappedError with the reason if a word is missing."""
    source, metric = row["id"].split("-")[0], row["metric"]
    program = library_program(row)
    gpus, pipeline = _gpu_count(row)
    if pipeline and metric not in STEP_METRICS | MEMORY_METRICS:
        raise UnmappedError("a pipeline over several cards overlaps micro-batches")
    mix = words.MIXES.get(row["weight_scheme"])
    scheme = mix.body if mix else scheme_name(row)
    cached = re.search(r"cached history of (\d+)", row["note"]) or re.search(r"n_kv=(\d+)", row["note"])
    return Case(
        source=source,
        metric=metric,
        hardware=machine(row),
        model=load_model(_word(words.MODELS, row["model"], "model is not in the catalog")),
        scheme=scheme,
        mix=mix,
        kv=_kv(row),
        program=program,
        gpu_count=gpus,
        batch=_batch(row),
        prompt_tokens=_tokens(row["prompt_len"], words.SHORT_PROMPT_TOKENS.get(source)),
        output_tokens=_tokens(row["output_len"], None),
        cached_tokens=int(cached[1]) if cached and metric in ("ttft", "prefill_tps") else 0,
        saturated=row["batch"] in words.SATURATED_BATCH,
        value=float(row["value"]),
        unit=row["unit"],
        allocator_only="allocator" in row["note"],
    )


def machine(row: dict[str, str]) -> Hardware:
    """Return the row's machine; of a CPU only the cores whose threads run."""
    hardware = load_hardware(_word(words.HARDWARE, row["hw"], "no profile of this machine"))
    threads = re.search(r"threads=(\d+)", row["note"])
    return with_threads(hardware, int(threads[1])) if threads and hardware.kind == "cpu" else hardware


def _word(table: dict[str, str], text: str, reason: str) -> str:
    if text not in table:
        raise UnmappedError(f"{reason}: {text}")
    return table[text]


def library_program(row: dict[str, str]) -> words.Program:
    """Return the library and engine class of the row's engine."""
    found = next((program for start, program in words.PROGRAMS if row["engine"].startswith(start)), None)
    if found is None:
        raise UnmappedError(f"engine without a library of ours: {re.sub(r' [(v0-9].*', '', row['engine'])}")
    return found


def _gpu_count(row: dict[str, str]) -> tuple[int, bool]:
    """Return the cards in tensor parallel, and whether there are more cards, used one after another."""
    if not row["tp"]:
        raise UnmappedError("how the cards share the work is not stated")
    gpus = int(float(row["tp"]))
    return gpus, row["hw_count"].isdigit() and int(row["hw_count"]) > gpus


def scheme_name(row: dict[str, str]) -> str:
    """Return our name of the row's scheme."""
    name = words.SCHEMES.get(row["weight_scheme"]) or words.GROUPED_SCHEMES.get(
        (row["weight_scheme"], row["group_size"])
    )
    if name is None:
        group = f" g{row['group_size']}" if row["group_size"] else ""
        raise UnmappedError(f"no such scheme here: {row['weight_scheme']}{group}")
    return name


def _kv(row: dict[str, str]) -> str:
    if row["kv_dtype"] == "" and row["weight_scheme"] == "fp8":
        return words.KV_OF_FP8_CHECKPOINTS
    return _word(words.KV_FORMATS, row["kv_dtype"], "no such KV format here")


def _batch(row: dict[str, str]) -> int:
    text = row["batch"]
    if text in words.SATURATED_BATCH:
        return words.SATURATED_BATCH[text]
    if not text.isdigit():
        if row["metric"] == "weight_mem":
            return 1
        raise UnmappedError(f"batch is not a number: {text or 'absent'}")
    return int(text)


def _tokens(text: str, described: int | None) -> int | None:
    return int(float(text)) if text else described


def workload_of(case: Case) -> tuple[int, int]:
    """Return prompt and output tokens; what a source leaves out is assumed only where it hardly matters."""
    prompt, output = case.prompt_tokens, case.output_tokens
    decodes = case.metric in STEP_METRICS | MEMORY_METRICS or (
        case.metric == "tpot" and case.source not in words.PREFILL_INSIDE_TPOT
    )
    prefills = case.metric in PREFILL_METRICS
    if not decodes and (prompt is None or (output is None and not prefills)):
        raise UnmappedError("prompt or output length is not stated")
    prompt = words.UNSTATED_PROMPT_TOKENS if prompt is None else prompt
    output = words.UNSTATED_OUTPUT_TOKENS if output is None else output
    return max(1, prompt), max(1, output)


def place(case: Case) -> tuple[Deployment, Assignment]:
    """Return deployment and assignment of a row; a GGUF mix has its own types for the head and half the downs."""
    prompt, output = workload_of(case)
    program = case.program
    setting = Setting(
        case.batch, prompt, output, library=program.library, gpu_count=case.gpu_count, kv=case.kv, engine=program.engine
    )
    where = deploy(case.hardware, case.model, setting)
    assignment = uniform_assignment(where, parse_scheme(case.scheme), case.kv)
    return where, assignment if case.mix is None else _mixed(where, assignment, case.mix)


def _mixed(where: Deployment, assignment: Assignment, mix: words.Mix) -> Assignment:
    blocks = len(where.model.blocks)
    eighth = blocks // 8

    def scheme(index: int, group_name: str, block: int | None) -> Scheme:
        if group_name == "head":
            return parse_scheme(mix.head)
        more = block is not None and (block < eighth or block >= 7 * eighth or (block - eighth) % 3 == 2)
        if mix.half_of_down and group_name == "down" and more:
            return parse_scheme(mix.half_of_down)
        return assignment.schemes[index]

    schemes = tuple(scheme(i, group.name, group.block_index) for i, group in enumerate(assignment.groups))
    return replace(assignment, schemes=schemes, embedding=parse_scheme(mix.body))
