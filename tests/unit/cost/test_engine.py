"""The host's share of a step, and the threads of a CPU."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import round_hardware, small_model

from codesign.cost.deployment import deploy, uniform_assignment
from codesign.cost.engine import (
    ACTIVATION_KERNELS,
    EAGER_CYCLES_PER_ELEMENT,
    ENGINE_CLASSES,
    HOST_COLD_S_PER_KERNEL,
    HOST_S_PER_KERNEL,
    WEIGHT_ONLY_KERNELS,
    EngineClass,
    engine_class,
    host_kind,
    host_s,
    host_wait,
    issue_s,
    linear_kernel_count,
)
from codesign.cost.inference import InferencePrediction, predict_inference
from codesign.cost.origin import Origin
from codesign.cost.prediction import Prediction
from codesign.cost.step import Step, elements_per_token, elementwise_kernels, total_stage
from codesign.cost.target import Target
from codesign.errors import InputError
from codesign.hardware.file import load_hardware
from codesign.hardware.hardware import Hardware
from codesign.hardware.threads import with_threads
from codesign.model.file import load_model
from codesign.model.groups import fused_groups
from codesign.model.layers import Model
from codesign.schemes.catalog import parse_scheme
from codesign.setting import Setting

EAGER, FUSED, COMPILED = (ENGINE_CLASSES[name] for name in ("eager", "eager-fused", "compiled"))
SECONDS = st.floats(1e-6, 10.0)


def predicted(engine: str | None, batch: int = 1, scheme: str = "BF16") -> InferencePrediction:
    setting = Setting(batch, 100, 10, library="torch", engine=engine or "")
    where = deploy(round_hardware(), small_model(), setting)
    assignment = uniform_assignment(where, parse_scheme(scheme))
    return predict_inference(where, assignment)


def kernel_count(engine: str, model: Model, scheme: str) -> float:
    groups = fused_groups(model)
    seconds = host_s(ENGINE_CLASSES[engine], round_hardware(), groups, [parse_scheme(scheme)] * len(groups)).value
    return seconds / issue_s(round_hardware())


def test_without_an_engine_nothing_changes() -> None:
    assert predicted(None) == predicted("compiled")
    assert "host" not in predicted(None).decode_parts


def test_an_eager_step_of_a_small_model_takes_the_time_of_its_launches() -> None:
    kernels = 4 * (7 + EAGER.other_kernels_per_block) + 1
    assert predicted("eager").tpot_s.value == pytest.approx(kernels * HOST_S_PER_KERNEL["server"])


def test_an_eager_step_never_beats_a_compiled_one() -> None:
    for batch in (1, 64, 4096):
        assert predicted("eager", batch).tpot_s.value >= predicted("eager-fused", batch).tpot_s.value
        assert predicted("eager-fused", batch).tpot_s.value >= predicted("compiled", batch).tpot_s.value


def test_large_batches_hide_the_host() -> None:
    assert predicted("eager", 4096).tpot_s == predicted("compiled", 4096).tpot_s


def test_the_kernels_of_a_block() -> None:
    one, two = (small_model(blocks=count) for count in (1, 2))
    counts = [kernel_count("eager", two, name) - kernel_count("eager", one, name) for name in ("BF16", "NF4", "W8A8")]
    linear, others = 7, EAGER.other_kernels_per_block
    each = [0.0, WEIGHT_ONLY_KERNELS, ACTIVATION_KERNELS]
    assert counts == pytest.approx([linear * (1 + kernels) + others for kernels in each])
    fused = kernel_count("eager-fused", two, "BF16") - kernel_count("eager-fused", one, "BF16")
    assert fused == pytest.approx(4 + FUSED.other_kernels_per_block)


def test_an_unfused_loop_issues_every_expert() -> None:
    mixtral = load_model("mixtral-8x7b")
    difference = kernel_count("eager", mixtral, "BF16") - kernel_count("eager-fused", mixtral, "BF16")
    per_block = 3 * (8 - 1) + (4 - 2) + EAGER.other_kernels_per_block - FUSED.other_kernels_per_block
    assert difference == 32 * per_block


@given(device=SECONDS, host=SECONDS, device_spread=st.floats(0, 0.9), host_spread=st.floats(0, 0.9))
def test_device_and_wait_together_are_the_longer_of_both(
    device: float, host: float, device_spread: float, host_spread: float
) -> None:
    first, second = (
        Prediction(value, value * (1 - spread), value * (1 + spread), Origin.DATASHEET)
        for value, spread in ((device, device_spread), (host, host_spread))
    )
    wait = host_wait(load_hardware("h100-sxm"), first, second).seconds
    in_turn = host_wait(load_hardware("ryzen-7950x"), first, second).seconds
    for end in ("value", "low", "high"):
        longer = max(getattr(first, end), getattr(second, end))
        assert getattr(first, end) + getattr(wait, end) == pytest.approx(longer)
        assert getattr(in_turn, end) == pytest.approx(getattr(second, end))


def test_hosts() -> None:
    assert host_kind(load_hardware("rtx-4090")) == "desktop"
    assert host_kind(load_hardware("h100-sxm")) == "server"
    assert issue_s(load_hardware("h100-sxm")) == pytest.approx(20.7e-6)
    own_host = load_hardware("ryzen-7950x")
    assert issue_s(own_host) == pytest.approx(3.95e4 / own_host.boost_clock_hz)


def host_of(name: str, model: str, scheme: str, engine: EngineClass = EAGER) -> float:
    groups = fused_groups(load_model(model))
    return host_s(engine, load_hardware(name), groups, [parse_scheme(scheme)] * len(groups)).value


def test_layers_that_exceed_the_cache_of_a_cpu_make_the_program_between_them_slower() -> None:
    """Layers of Llama-2-7B exceed this cache of 64 MiB in BF16, not in 4 bits. A GPU's host has its own."""
    block_kernels = 7 + EAGER.other_kernels_per_block
    warm_s = (32 * block_kernels + 1) * issue_s(load_hardware("ryzen-7950x"))
    wide, narrow = (host_of("ryzen-7950x", "llama-2-7b", scheme) for scheme in ("BF16", "W4A16-g128"))
    assert warm_s < narrow < wide < warm_s + 32 * block_kernels * HOST_COLD_S_PER_KERNEL
    assert narrow - warm_s < (wide - warm_s) / 2
    assert host_of("h100-sxm", "llama-2-7b", "BF16") == pytest.approx((32 * block_kernels + 1) * 20.7e-6)
    assert host_of("ryzen-7950x", "llama-2-7b", "BF16", ENGINE_CLASSES["compiled"]) == 0.0


def test_a_library_of_a_cpu_does_a_whole_layer_in_one_call() -> None:
    groups, cpu = fused_groups(small_model()), load_hardware("ryzen-7950x")
    for group in groups:
        assert linear_kernel_count(EAGER, cpu, group, parse_scheme("W8A8")) == len(group.layers)


@pytest.mark.parametrize("text", ["AutoAWQ", "eager-fused", "tinychat"])
def test_engines_by_name(text: str) -> None:
    assert engine_class(text) is FUSED


def test_an_unknown_engine_is_answered_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"Did you mean.*transformers.*compiled, eager"):
        engine_class("transfomers")


@given(few=st.integers(1, 40), more=st.integers(0, 40))
def test_more_threads_are_never_slower_and_cores_are_the_limit(few: int, more: int) -> None:
    machine = load_hardware("ryzen-7950x")
    slow, fast = with_threads(machine, few), with_threads(machine, few + more)
    for name, peak in machine.peak_flop_per_s.items():
        assert slow.peak_flop_per_s[name] <= fast.peak_flop_per_s[name] <= peak
        assert slow.peak_flop_per_s[name] == pytest.approx(peak * min(1.0, few / 16))
    assert slow.memory == machine.memory


def test_a_cache_that_grows_by_concatenation_is_there_twice():
    hardware, model = load_hardware("a100"), load_model("llama-2-13b")
    found = {}
    for engine in ("compiled", "eager"):
        where = deploy(hardware, model, Setting(batch=16, prompt_tokens=512, output_tokens=512, engine=engine))
        found[engine] = predict_inference(where, uniform_assignment(where, parse_scheme("FP16")))
    assert found["eager"].memory.kv_bytes == 2 * found["compiled"].memory.kv_bytes
    assert found["eager"].largest_batch == found["compiled"].largest_batch // 2
    # huggingface/optimum tests/benchmark/README.md: 53,986 MB at batch 16, 512 + 512 tokens, CUDA context included.
    assert found["eager"].memory.total_bytes == pytest.approx(53_986e6, rel=0.05)


def test_operations_that_run_one_by_one_on_a_cpu_take_cycles_for_each_element() -> None:
    model, step = small_model(), Step(1, 100, 100)
    one_core, gpu = with_threads(load_hardware("ryzen-7950x"), 1), load_hardware("a100")

    def seconds(hardware: Hardware, engine: EngineClass) -> float:
        return total_stage(elementwise_kernels(model, Target(hardware, "torch"), step, engine)).seconds.value

    assert seconds(gpu, EAGER) == seconds(gpu, COMPILED)
    cycles = 100 * elements_per_token(model) * EAGER_CYCLES_PER_ELEMENT
    fixed_s = one_core.launch_overhead_s * 4 * len(model.blocks)
    assert seconds(one_core, COMPILED) < seconds(one_core, EAGER)
    assert seconds(one_core, EAGER) == pytest.approx(cycles / one_core.boost_clock_hz + fixed_s)
