"""No test may use the network, in this process or in one that it starts."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "no_network"))
import sitecustomize  # noqa: E402, F401 - installs the audit hook

PATHS = (str(HERE / "no_network"), str(HERE.parent), os.environ.get("PYTHONPATH", ""))
os.environ["PYTHONPATH"] = os.pathsep.join(path for path in PATHS if path)

# Several tests run at a time: threads that wait for each other in a loop would take the processors from all of them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A slow machine is no reason to fail, and a run must be repeatable: examples follow from the test, not from a clock.
settings.register_profile(
    "project", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.load_profile("project")


@pytest.fixture(autouse=True)
def gradients() -> Iterator[None]:
    """Give torch its gradients back: adapters of the profiler switch them off for the process, which is a child's."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_grad_enabled(True)
