"""Which bits for which layer of a language model on which hardware, what that buys and what it costs.

>>> import codesign
>>> hardware, model = codesign.load_hardware("a100"), codesign.load_model("llama-7b")
>>> print(codesign.plan(hardware, model).verdict)  # doctest: +SKIP
"""

import codesign.plan  # noqa: F401 - the folder: imported first, so that the name below is the function
from codesign.api import load_hardware, load_model, parse_scheme, plan, predict
from codesign.setting import Setting

__version__ = "0.1.0"
__all__ = ["Setting", "__version__", "load_hardware", "load_model", "parse_scheme", "plan", "predict"]
