"""No test may use the network, in this process or in one that it starts."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "no_network"))
import sitecustomize  # noqa: E402, F401 - installs the audit hook

PATHS = (str(HERE / "no_network"), str(HERE.parent), os.environ.get("PYTHONPATH", ""))
os.environ["PYTHONPATH"] = os.pathsep.join(path for path in PATHS if path)
