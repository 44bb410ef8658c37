"""The closed loop as machine code: one call a step, for CPUs (numba, LLVM)."""
