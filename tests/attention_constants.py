"""Plausible constants of attention kernels."""

from codesign.cost.attention_time import SINGLE_PREFIX

DECODE = {
    "fixed_s": 7e-6,
    "bandwidth_fraction": 0.9,
    "ramp_s": 5e-6,
    "load_bytes_per_cycle": 20.0,
    "compute_fraction": 0.3,
    "task_overhead_s": 2e-6,
    "token_block": 64.0,
    "split_s": 1e-6,
    "split_each_s": 1e-7,
    "overlap_exponent": 2.0,
}
SINGLE = {SINGLE_PREFIX + name: value for name, value in DECODE.items()}
PREFILL = {
    "fixed_s": 1e-5,
    "bandwidth_fraction": 0.5,
    "compute_fraction": 0.7,
    "exponentials_per_cycle": 20.0,
    "task_overhead_s": 1e-6,
    "wave_fraction": 0.5,
    "token_s": 1e-10,
    "overlap_exponent": 1.2,
}
