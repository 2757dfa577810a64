"""Plans of fake kernels and quick settings for the runner."""

from codesign.profiler.candidates import Question, RunPlan, Shape, make_plan
from codesign.profiler.discover import OWN_MODULE, load_catalog
from codesign.profiler.kernel import CacheState
from codesign.profiler.timing import Rule
from codesign.profiler.turn import Limits, RunSettings
from codesign.units import GIBI
from tests.fake_kernels import MODULE

MODULES = (OWN_MODULE, MODULE)
QUICK = Rule(warm_up_min_s=0.01, warm_up_max_s=0.05, min_samples=12, min_rounds=3, budget_s=0.2)


def plan(libraries: tuple[str, ...], batches: tuple[int, ...] = (1,), cache: CacheState = "rotating") -> RunPlan:
    """Return the cases of one small shape."""
    question = Question((Shape(64, 128),), (), batches, (1,), libraries, (), cache, 3)
    return make_plan(question, load_catalog(MODULES), {}, 1e5)


def only(what: RunPlan, *names: str) -> RunPlan:
    """Return the entries of the named kernels."""
    blocks = (tuple(entry for entry in block if entry.kernel.name in names) for block in what.blocks)
    return RunPlan(tuple(block for block in blocks if block), what.skipped)


def settings(**changes: object) -> RunSettings:
    """Return quick settings on a machine without limits, with some replaced."""
    fields = {"hw": "epyc-9654", "modules": MODULES, "seed": 3, "rule": QUICK, "memory_limit_bytes": 64.0 * GIBI}
    return RunSettings(**{**fields, "limits": Limits(1e12, {}, 0.0), **changes})
