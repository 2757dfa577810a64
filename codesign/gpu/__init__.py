"""Our kernels for NVIDIA GPUs: compiled when they are first needed, for the GPU that is here."""
