import pytest

from codesign import units
from codesign.errors import did_you_mean


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (units.format_seconds(0.07), "70 ms"),
        (units.format_seconds(2.5e-6), "2.5 us"),
        (units.format_seconds(12), "12 s"),
        (units.format_seconds(0), "0 us"),
        (units.format_gib(2**30), "1 GiB"),
        (units.format_gib(3.5 * 2**20), "3.5 MiB"),
        (units.format_bytes_per_s(2.039e12), "2.04 TB/s"),
        (units.format_bytes_per_s(320e9), "320 GB/s"),
        (units.format_flop_per_s(312e12), "312 Tflop/s"),
        (units.format_joule(0.0021), "2.1 mJ"),
        (units.format_usd(0.5), "$0.5"),
        (units.format_percent(0.0256), "2.56 %"),
        (units.significant(1234567), "1,234,567"),
        (units.significant(0.00001234), "1.23e-05"),
        (units.significant(-2.5), "-2.5"),
    ],
)
def test_numbers_are_written_for_people(text, expected):
    assert text == expected


def test_did_you_mean_names_the_nearest_or_nothing():
    assert did_you_mean("plna", ("plan", "predict")) == ' Did you mean "plan"?'
    assert did_you_mean("zzz", ("plan", "predict")) == ""
