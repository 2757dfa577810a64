import functools
from dataclasses import replace
from itertools import pairwise

import pytest
import yaml
from machines import round_hardware, small_model

from codesign.capacity import candidates
from codesign.capacity.candidates import Service
from codesign.capacity.launch import kubernetes_yaml, launch_command
from codesign.capacity.load import Objectives
from codesign.capacity.replica import Limits
from codesign.capacity.requests import Demand, Fixed
from codesign.capacity.size import Sized, size
from codesign.report.size_page import write_size_page
from codesign.schemes.kv import parse_kv
from codesign.setting import Setting

HOSTILE = "</script><script>document.title='owned'</script>"
SERVICE = Service(
    replace(small_model(), name="llama-7b"),
    Demand(50.0, Fixed(500), Fixed(50)),
    Objectives(tpot_s=0.01),
    Limits(sequences_max=64, shared_prefix_tokens=128),
    0.03,
)
# vLLM docs, "Engine arguments"; SGLang docs, "Server arguments"; llama.cpp, tools/server/README.md
FLAGS = {
    "vllm": {"--tensor-parallel-size", "--pipeline-parallel-size", "--max-model-len", "--max-num-seqs",
             "--max-num-batched-tokens", "--gpu-memory-utilization", "--kv-cache-dtype", "--enable-prefix-caching"},
    "sglang": {"--model-path", "--tp", "--pp-size", "--context-length", "--max-running-requests",
               "--chunked-prefill-size", "--mem-fraction-static", "--kv-cache-dtype"},
    "llama.cpp": {"-m", "-c", "-np", "-b", "-ngl", "-ctk", "-ctv"},
}  # fmt: skip


@pytest.fixture(autouse=True)
def few_requests(monkeypatch):
    """Simulate fewer requests: how the answer is written is the point."""
    monkeypatch.setattr(candidates, "REQUESTS_PER_REPLICA", 500)


@functools.cache
def sized() -> Sized:
    return size([round_hardware(vendor="nvidia")], SERVICE, Setting(), {}).best


def best(library: str, kv: str = "bf16", pipeline: int = 1) -> Sized:
    """Return a sizing as if it were for another program, KV format and pipeline."""
    found = sized()
    one = found.candidate
    where = replace(one.where, target=replace(one.where.target, library=library))
    assignment = replace(one.assignment, kv=parse_kv(kv))
    limits = replace(one.limits, pipeline=pipeline)
    return replace(found, candidate=replace(one, where=where, assignment=assignment, limits=limits))


@pytest.mark.parametrize(("library", "kv"), [("vllm", "fp8"), ("sglang", "fp8"), ("llama.cpp", "q8_0")])
def test_commands_use_flags_that_are_documented(library, kv):
    words = launch_command(best(library, kv, 2), 600).replace("\\\n", " ").split()
    start = {"vllm": 3, "sglang": 3, "llama.cpp": 1}[library]  # the program, before its options
    flags = {word for word in words[start:] if word.startswith("-")}
    assert flags
    assert flags <= FLAGS[library]


def test_the_command_says_what_was_simulated():
    words = launch_command(best("vllm"), 600).replace("\\\n", " ").split()
    given = dict(pairwise(words))
    assert (given["--max-num-seqs"], given["--max-num-batched-tokens"], given["--max-model-len"]) == (
        "64",
        "8192",
        "600",
    )
    assert "--enable-prefix-caching" in words
    assert "--kv-cache-dtype" not in words
    assert launch_command(best("torch"), 600) is None


def test_a_slot_of_llama_cpp_holds_a_whole_request():
    words = launch_command(best("llama.cpp"), 600).replace("\\\n", " ").split()
    given = dict(pairwise(words))
    assert int(given["-c"]) == 600 * int(given["-np"])


def test_the_deployment_asks_for_the_gpus_of_every_replica():
    found = best("vllm")
    deployment = yaml.safe_load(kubernetes_yaml(found, 600))
    assert deployment["spec"]["replicas"] == found.replicas
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": found.candidate.devices}
    assert container["command"][:2] == ["vllm", "serve"]
    assert kubernetes_yaml(best("vllm", pipeline=2), 600) is None
    assert kubernetes_yaml(best("torch"), 600) is None


def test_a_hostile_name_runs_no_script_and_the_same_answer_gives_the_same_page(tmp_path):
    service = replace(SERVICE, model=replace(SERVICE.model, name=HOSTILE))
    machine = round_hardware(name="<img src=x onerror=alert(1)>")
    found = size([machine], SERVICE, Setting(), {})
    first, second = tmp_path / "1.html", tmp_path / "2.html"
    for path in (first, second):
        write_size_page(service, found, path)
    text = first.read_text(encoding="utf-8")
    assert HOSTILE not in text
    assert "<img src=x" not in text
    assert first.read_bytes() == second.read_bytes()
