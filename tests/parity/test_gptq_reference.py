"""Our GPTQ beside llm-compressor's on the same weights and Hessians."""

import pytest

from codesign.quantize.gptq import GptqOptions
from codesign.schemes.catalog import parse_scheme

torch = pytest.importorskip("torch", reason="quantizers need torch")
pytest.importorskip("llmcompressor", reason="the reference implementation; scripts/compare_gptq.py says what it needs")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of the package, about itself


@pytest.mark.parametrize("scheme", ["W4A16-g64", "W3A16-g64", "W4A16-g128", "W8A16-g128"])
@pytest.mark.parametrize("seed", range(4))
def test_the_error_of_the_outputs_is_at_most_that_of_the_reference(scheme, seed):
    from scripts.compare_gptq import ours, reference

    random = torch.Generator().manual_seed(seed)
    mixed = torch.randn(512, 512, generator=random) / 20 + torch.eye(512)
    x = torch.randn(2048, 512, generator=random) @ mixed
    x[:, ::97] *= 30.0
    weights = [torch.randn(n, 512, generator=random) for n in (96, 160)]
    hessian = x.T @ x
    theirs = reference(weights, hessian, parse_scheme(scheme)).error
    assert ours(weights, hessian, parse_scheme(scheme), GptqOptions()).error < theirs
    assert ours(weights, hessian, parse_scheme(scheme), GptqOptions(clip=False)).error < 1.01 * theirs
