"""Constants of unit conversion and the only functions that turn numbers into text for people."""

KIBI, MEBI, GIBI = 2**10, 2**20, 2**30
KILO, MEGA, GIGA, TERA = 1e3, 1e6, 1e9, 1e12
MICRO, MILLI = 1e-6, 1e-3
BITS_PER_BYTE = 8
SECONDS_PER_HOUR = 3600.0


def _scaled(value: float, steps: tuple[tuple[float, str], ...]) -> str:
    for scale, unit in steps:
        if abs(value) >= scale:
            return f"{significant(value / scale)} {unit}"
    scale, unit = steps[-1]
    return f"{significant(value / scale)} {unit}"


def significant(value: float, digits: int = 3) -> str:
    """Return the value with `digits` significant digits and no exponent for everyday sizes."""
    if value == 0:
        return "0"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    text = f"{value:.{digits}g}"
    return f"{value:.2e}" if "e" in text else text


def format_seconds(value: float) -> str:
    """Return a duration as s, ms or us."""
    return _scaled(value, ((1.0, "s"), (MILLI, "ms"), (MICRO, "us")))


def format_gib(value_bytes: float) -> str:
    """Return a memory size in GiB, MiB or KiB."""
    return _scaled(value_bytes, ((GIBI, "GiB"), (MEBI, "MiB"), (KIBI, "KiB"), (1.0, "bytes")))


def format_bytes_per_s(value: float) -> str:
    """Return a bandwidth in TB/s or GB/s."""
    return _scaled(value, ((TERA, "TB/s"), (GIGA, "GB/s")))


def format_flop_per_s(value: float) -> str:
    """Return a rate in Tflop/s or Gflop/s."""
    return _scaled(value, ((TERA, "Tflop/s"), (GIGA, "Gflop/s")))


def format_joule(value: float) -> str:
    """Return an energy in J or mJ."""
    return _scaled(value, ((1.0, "J"), (MILLI, "mJ")))


def format_usd(value: float) -> str:
    """Return an amount of money in US dollars."""
    return f"${significant(value)}"


def format_percent(fraction: float) -> str:
    """Return a fraction as percent."""
    return f"{significant(fraction * 100)} %"
