"""Weights of other implementations."""

from keras_vmoe.checkpoints.reference import assign_reference_params as assign_reference_params
from keras_vmoe.checkpoints.reference import reference_variables as reference_variables
