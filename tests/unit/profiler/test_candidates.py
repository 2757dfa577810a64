"""Which cases and kernels a question comes to, and in which order and groups they are measured."""

import hashlib
from importlib.metadata import EntryPoint

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codesign.errors import InputError
from codesign.hardware.file import load_hardware
from codesign.model.file import load_model
from codesign.profiler import discover
from codesign.profiler.candidates import (
    COPIES_MAX,
    FEW_ROWS_CACHES,
    ROTATION_CACHES,
    AttentionSizes,
    Question,
    Shape,
    copy_count,
    make_plan,
    memory_groups,
    model_attentions,
    model_shapes,
    need_bytes,
    parse_shapes,
    scheme_names,
    shuffled,
    stored_bytes,
)
from codesign.profiler.check import check_output
from codesign.profiler.discover import OWN_MODULE, Catalog, adapter_modules, choose_libraries, load_catalog
from codesign.profiler.estimate import plan_cost
from codesign.profiler.kernel import AttentionCase, GemmCase, gemm_inputs
from codesign.profiler.run_folder import Skipped
from codesign.profiler.timing import Rule
from tests import fake_kernels


def catalog() -> Catalog:
    return Catalog((fake_kernels.MODULE,), fake_kernels.all_kernels(), fake_kernels.library_states(), {})


def question(**changes: object) -> Question:
    fields = {
        "shapes": (Shape(64, 128), Shape(63, 128)),
        "attentions": (AttentionSizes(32, 8, 128, 1024),),
        "batches": (1, 4),
        "threads": (1, 2),
        "libraries": ("fake", "away"),
        "schemes": (),
        "cache": "rotating",
        "seed": 0,
    }
    return Question(**{**fields, **changes})


def test_llama_2_7b_has_four_block_shapes_and_the_head():
    assert model_shapes(load_model("llama-2-7b")) == (
        Shape(12288, 4096),
        Shape(4096, 4096),
        Shape(22016, 4096),
        Shape(4096, 11008),
        Shape(32000, 4096),
    )


def test_experts_and_routers_are_among_the_shapes_of_a_mixture():
    assert {Shape(14336, 4096), Shape(4096, 14336), Shape(8, 4096)} <= set(model_shapes(load_model("mixtral-8x7b")))


def test_attentions_are_those_of_the_model_at_each_length():
    found = model_attentions(load_model("llama-3-8b"), (1024, 4096))
    assert found == (AttentionSizes(32, 8, 128, 1024), AttentionSizes(32, 8, 128, 4096))


def test_attention_of_a_prompt_has_as_many_new_tokens_as_the_prompt():
    found = model_attentions(load_model("llama-3.1-8b"), (1024,), (128,))
    assert found == (AttentionSizes(32, 8, 128, 1024), AttentionSizes(32, 8, 128, 128, 128))
    assert model_attentions(load_model("deepseek-v3"), (1024,)) == ()


def test_a_plan_has_each_case_for_each_kernel_and_says_what_is_skipped():
    plan = make_plan(question(), catalog(), {}, 1e6)
    assert len(plan.blocks) == 2 * (2 + 2)  # threads x (batches of the even shape + batches of attention)
    assert [entry.kernel.name for entry in plan.blocks[0]] == ["plain", "slower", "packed"]
    assert [entry.kernel.name for entry in plan.blocks[2]] == ["decode"]
    assert plan.skipped[0] == Skipped("away", "not installed; pip install away")
    assert Skipped("fake/plain BF16", "n must be even (4 cases)") in plan.skipped
    assert plan.candidates[:2] == ("fake/plain BF16 x1", "fake/slower BF16 x1")
    assert [entry.case.threads for entry in plan.entries] == sorted(entry.case.threads for entry in plan.entries)


def test_equal_questions_give_equal_plans_and_keys_know_the_version():
    first, second = (make_plan(question(), catalog(), {"processor": "x"}, 1e6) for _ in range(2))
    assert [e.key for e in first.entries] == [e.key for e in second.entries]
    assert len({e.key for e in first.entries}) == len(first.entries)
    other = make_plan(question(), catalog(), {"processor": "y"}, 1e6)
    assert not {e.key for e in first.entries} & {e.key for e in other.entries}


def test_schemes_restrict_multiplications_only():
    plan = make_plan(question(schemes=("W4A16-g128",)), catalog(), {}, 1e6)
    assert {entry.kernel.name for entry in plan.entries} == {"packed", "decode"}


@given(st.floats(1e3, 1e9), st.integers(1, 64), st.integers(1, 4096), st.integers(1, 128))
def test_the_copies_outlast_the_cache_by_far_where_reading_takes_the_time(cache_bytes, m, n, groups):
    case = GemmCase("W4A16-g128", m, n, 128 * groups)
    count = copy_count(case, cache_bytes)
    caches = FEW_ROWS_CACHES if m <= 8 else ROTATION_CACHES
    assert count * stored_bytes(case) > caches * cache_bytes or count == COPIES_MAX
    assert copy_count(GemmCase("W4A16-g128", m, n, 128 * groups, cache="hot"), cache_bytes) == 1


def test_bytes_of_a_copy():
    assert stored_bytes(GemmCase("BF16", 1, 4096, 4096)) == 2 * 4096 * 4096
    assert stored_bytes(AttentionCase("fp16", 2, 32, 8, 128, 1, 1000)) == 2 * 2 * 8 * 128 * 1000 * 2


@given(st.floats(1.0, 1e12), st.integers(0, 9))
def test_groups_hold_every_entry_once_within_the_limit(limit_bytes, seed):
    block = shuffled(make_plan(question(), catalog(), {}, 1e8).blocks[0], seed, "x")
    groups = memory_groups(block, limit_bytes)
    assert tuple(entry for group in groups for entry in group) == block
    assert all(len(group) == 1 or need_bytes(group, len(block)) <= limit_bytes for group in groups)


def test_the_order_follows_from_the_seed_alone():
    block = make_plan(question(), catalog(), {}, 1e6).entries
    assert shuffled(block, 1, "round 0") == shuffled(block, 1, "round 0")
    assert len({shuffled(block, 1, f"round {i}") for i in range(5)}) > 1
    assert len({shuffled(block, seed, "round 0") for seed in range(5)}) > 1


def test_a_cost_grows_with_the_cases():
    hardware, rule = load_hardware("epyc-9654"), Rule()
    small = plan_cost(make_plan(question(batches=(1,)), catalog(), {}, 1e6), hardware, rule)
    large = plan_cost(make_plan(question(), catalog(), {}, 1e6), hardware, rule)
    assert 0 < small.seconds < large.seconds
    assert small.memory_bytes > 0
    assert plan_cost(make_plan(question(libraries=()), catalog(), {}, 1e6), hardware, rule).memory_bytes == 0


@pytest.mark.parametrize("text", ["4096", "4096x", "0x4", "4x-4", "ax4", "1x2x3", "9999999x4", "4x٤"])
def test_what_is_no_shape_is_refused(text):
    with pytest.raises(InputError, match="NxK"):
        parse_shapes(text)


def test_shapes_and_schemes_are_read_once():
    assert parse_shapes("64x128, 32X64,64x128") == (Shape(64, 128), Shape(32, 64))
    assert (scheme_names("all"), scheme_names("w4a16-g128,BF16,bf16")) == ((), ("W4A16-g128", "BF16"))


def test_libraries_are_those_of_states_and_kernels():
    assert choose_libraries(catalog(), "all") == ("fake", "broken", "away")
    assert choose_libraries(catalog(), "Fake, away") == ("fake", "away")
    with pytest.raises(InputError, match=r'"fak" are known here\. Did you mean "fake"'):
        choose_libraries(catalog(), "fak")


def test_modules_are_the_own_one_and_the_named_ones():
    assert adapter_modules(("a.b", OWN_MODULE)) == (OWN_MODULE, "a.b")


def test_installed_packages_offer_modules_by_entry_points(monkeypatch):
    points = [EntryPoint("theirs", "their.kernels", "codesign.kernels")]
    monkeypatch.setattr(discover, "entry_points", lambda group: points if group == "codesign.kernels" else [])
    assert adapter_modules() == (OWN_MODULE, "their.kernels")


def test_a_module_may_bring_its_own_check():
    loaded = load_catalog((fake_kernels.MODULE,))
    assert loaded.check_of("fake") is fake_kernels.check_output
    assert loaded.check_of("torch") is check_output


def test_equal_seeds_give_equal_inputs():
    def digest(seed: int) -> str:
        inputs = gemm_inputs(GemmCase("BF16", 3, 64, 128, seed=seed))
        return hashlib.sha256(inputs.x.tobytes() + inputs.w.tobytes()).hexdigest()

    assert digest(1) == digest(1)
    assert digest(1) != digest(2)


@pytest.mark.parametrize(("module", "word"), [("no.such.module", "cannot be imported"), ("json", "no function all_k")])
def test_a_module_without_kernels_is_refused(module, word):
    with pytest.raises(InputError, match=word):
        load_catalog((module,))
