"""Results of other tools as measurements, one module per format, with the conditions that each format states."""

# The name of a format, and the module whose `read(path)` returns what a file of it holds.
FORMATS = {
    "llama-bench": "codesign.profiler.imports.llama_bench",
    "ncu": "codesign.profiler.imports.ncu",
    "nvbench": "codesign.profiler.imports.nvbench",
    "vllm-bench": "codesign.profiler.imports.vllm_bench",
}
