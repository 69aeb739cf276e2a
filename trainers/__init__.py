"""Training, evaluation and the `keras-vmoe` commands."""
