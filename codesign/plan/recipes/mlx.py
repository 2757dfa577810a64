"""A script for MLX: `mlx_lm.convert` with a predicate that gives each module its bits.

Source: mlx-lm 0.32, convert.py and utils.py (quantize_model: the predicate returns False or the parameters of
`to_quantized`; modules whose input size the default group does not divide are skipped; modes affine, mxfp4, nvfp4).
Affine groups store a 16-bit scale and a 16-bit bias, so that 4 bits per 64 take 4.5. Experts are `switch_mlp` there.
"""

import json
from typing import Any

from codesign.plan.recipes.patterns import by_scheme, module_patterns
from codesign.plan.recipes.tool import Export, Tool, header
from codesign.quality.methods import group_size_of
from codesign.schemes.scheme import Scheme

AFFINE_BITS, AFFINE_GROUPS = (2, 3, 4, 5, 6, 8), (32, 64, 128)
_MODES = {"MXFP4-A16": ("mxfp4", 32), "NVFP4-A16": ("nvfp4", 16)}


def parameters(scheme: Scheme) -> dict[str, Any] | None:
    """Return group size, bits and mode, None if MLX has no such scheme."""
    if scheme.name in _MODES:
        mode, size = _MODES[scheme.name]
        return {"group_size": size, "bits": 4, "mode": mode}
    bits, group = int(scheme.weights.bits), group_size_of(scheme)
    if not scheme.weight_only or bits not in AFFINE_BITS or group not in AFFINE_GROUPS:
        return None
    return {"group_size": group, "bits": bits, "mode": "affine"}


def problem(scheme: Scheme, _method: str) -> str | None:
    """Return why MLX has no such scheme."""
    if parameters(scheme):
        return None
    return f"MLX has affine groups of 32, 64 or 128 with 2 to 6 or 8 bits, MXFP4-A16 and NVFP4-A16, not {scheme}."


def write(export: Export) -> str:
    """Return the script."""
    groups = by_scheme(export.modules).values()
    table = {
        pattern.replace(r"experts\..*", r"(experts|switch_mlp)\..*"): parameters(members[0].scheme)
        for members in groups
        for pattern in module_patterns(members, export.modules)
    }
    smallest = min((row["group_size"] for row in table.values() if row), default=64)
    return (
        header(export, TOOL.written_for)
        + "import re\n\nfrom mlx_lm import convert\n\n"
        + "# An affine group also stores a 16-bit bias, so that files are larger than planned by 16 bits per group.\n"
        + f"SCHEMES = {json.dumps(table, indent=4)}\n"
        + _PREDICATE
        + f"convert(\n    {json.dumps(export.source)},\n    mlx_path={json.dumps(export.output)},\n"
        + f"    quantize=True,\n    q_group_size={smallest},\n    quant_predicate=scheme,\n)\n"
    )


_PREDICATE = '''

def scheme(path, _module):
    """Return the parameters of the first pattern that matches, False where the module stays as it is."""
    return next((dict(found) for pattern, found in SCHEMES.items() if re.search(pattern, path)), False)


'''

TOOL = Tool(
    name="mlx",
    title="MLX (mlx-lm)",
    version="0.32",
    source="mlx-lm, convert.py",
    libraries=(),
    write=write,
    problem=problem,
)
