"""Every kernel of every library that is installed computes what it says, on small and ragged shapes."""

import numpy as np
import pytest

from codesign.profiler.check import check_output, fingerprint
from codesign.profiler.kernel import AttentionCase, GemmCase
from codesign.profiler.libraries import LIBRARIES
from codesign.profiler.libraries.adapter import kernels_of, state_of
from codesign.schemes.kv import KV_FORMATS

pytest.importorskip("torch", reason="outputs are checked against plain PyTorch")

# The long k is for kernels that go through it in blocks.
GEMM_SHAPES = ((1, 64, 128), (4, 100, 96), (33, 48, 256), (4, 64, 576), (33, 96, 384), (1, 96, 4096))
ATTENTION_SHAPES = ((1, 70), (1, 1), (33, 33), (4, 50))  # new tokens, cached tokens
KERNELS = [kernel for library in LIBRARIES for kernel in kernels_of(library)]
MISSING = {(library.name, library.device): state_of(library).reason for library in LIBRARIES}


def cases(kernel) -> list:
    if kernel.scheme in KV_FORMATS:
        return [AttentionCase(kernel.scheme, 2, 8, 2, 64, *tokens) for tokens in ATTENTION_SHAPES]
    return [GemmCase(kernel.scheme, *shape) for shape in GEMM_SHAPES]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda one: f"{one.library}-{one.name}-{one.scheme}-{one.device}")
def test_the_kernel_computes_its_scheme(kernel):
    if MISSING[kernel.library, kernel.device]:
        pytest.skip(MISSING[kernel.library, kernel.device])
    refusals = [kernel.refuses(case) for case in cases(kernel)]
    if all(refusals):
        pytest.skip(refusals[0])
    for case, refused in zip(cases(kernel), refusals, strict=True):
        if refused is None:
            checked(kernel, case)


def checked(kernel, case) -> None:
    prepared = kernel.prepare(case, 3)
    check = check_output(prepared, case)
    assert check.passed, f"{case}: {check.reason}"
    first, last = (np.array(prepared.output(prepared.run(copy))) for copy in (0, 2))
    np.testing.assert_array_equal(last, np.roll(first, 2, axis=1) if isinstance(case, GemmCase) else first)
    if isinstance(case, GemmCase):
        print_ = fingerprint(prepared, first, prepared.reference())
        assert print_.achieved == print_.requested, f"{case}: {print_}"


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: f"{library.name}-{library.device}")
def test_two_threads_compute_the_same(library):
    if MISSING[library.name, library.device]:
        pytest.skip(MISSING[library.name, library.device])
    case = GemmCase("", 33, 96, 384, threads=2)
    gemms = [kernel for kernel in kernels_of(library) if kernel.scheme not in KV_FORMATS]
    able = [kernel for kernel in gemms if kernel.refuses(case) is None]
    if not able:
        pytest.skip("it refuses every kernel here")
    prepared = able[0].prepare(case, 1)
    assert check_output(prepared, case).passed


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: f"{library.name}-{library.device}")
def test_a_case_after_others_is_not_mistaken_for_them(library):
    """Libraries that remember weights by their address must not meet another matrix there."""
    if MISSING[library.name, library.device]:
        pytest.skip(MISSING[library.name, library.device])
    shapes = ((1, 96, 4096), (1, 64, 128), (4, 512, 1024), (1, 96, 4096))
    for kernel in kernels_of(library)[-6:]:
        for case in (GemmCase(kernel.scheme, *shape, seed=seed) for seed, shape in enumerate(shapes)):
            if kernel.refuses(case) is None:
                checked(kernel, case)
