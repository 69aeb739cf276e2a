"""What a run needs on a TPU, by the TPU's compiler, on a machine without a TPU."""
