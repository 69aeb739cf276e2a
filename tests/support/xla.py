"""How XLA compiles in tests."""

# XLA's own passes are those of users; LLVM's, on the code of a CPU, take a quarter of the time of
# runs that are mostly compilation.
COMPILE_FAST = "--xla_backend_optimization_level=0"
