"""Compiled twins of operators, optional and imported on first use: numba for the CPU, Triton for CUDA."""
