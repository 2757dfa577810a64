"""Schemes as terminal tables."""

from collections.abc import Sequence

from codesign.cli.output import print_table, print_title
from codesign.hardware.hardware import Hardware
from codesign.schemes.capability import library_capability, shape_rule, size_multiples
from codesign.schemes.catalog import SCHEMES
from codesign.schemes.scheme import Scheme
from codesign.table import Table


def print_schemes(schemes: Sequence[Scheme]) -> None:
    """Print name, bits per weight, math and description."""
    rows = [(s.name, f"{s.bits_per_weight:.4g}", " or ".join(s.math_dtypes), s.description) for s in schemes]
    print_table(Table(("scheme", "bits/weight", "multiplies in", "what it is"), rows, right=(1,)))


def capability_rows(hardware: Hardware, library: str) -> list[dict[str, object]]:
    """Return, for each scheme, whether it runs on the machine with the library, in which math and why."""
    rows: list[dict[str, object]] = []
    for scheme in SCHEMES.values():
        answer = library_capability(scheme, hardware, library)
        rule = shape_rule(scheme, hardware, library)
        n_multiple, k_multiple = size_multiples(scheme, hardware, library)
        rows.append(
            {
                "name": scheme.name,
                "bits_per_weight": scheme.bits_per_weight,
                "level": answer.level,
                "math_dtype": answer.math_dtype,
                "reason": answer.reason,
                "source": answer.source,
                "n_multiple": n_multiple,
                "k_multiple": k_multiple,
                "shape_source": rule.source if rule else None,
            }
        )
    return rows


def print_capabilities(hardware: Hardware, library: str, rows: Sequence[dict[str, object]]) -> None:
    """Print what runs natively, emulated and not at all, and of which sizes."""
    print_title(f"{hardware.name} with {library}")
    cells = [
        (
            str(row["name"]),
            f"{row['bits_per_weight']:.4g}",
            str(row["level"]),
            str(row["math_dtype"] or "-"),
            f"{row['n_multiple']} x {row['k_multiple']}" if row["math_dtype"] else "-",
            str(row["reason"]),
        )
        for row in rows
    ]
    print_table(Table(("scheme", "bits/weight", "here", "math", "n x k in", "reason"), cells, right=(1,)))
