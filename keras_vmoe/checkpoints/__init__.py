"""Weights of other implementations, and of other models."""

from keras_vmoe.checkpoints.reference import assign_reference_params as assign_reference_params
from keras_vmoe.checkpoints.reference import reference_variables as reference_variables
from keras_vmoe.checkpoints.transfer import FRESH as FRESH
from keras_vmoe.checkpoints.transfer import Transfer as Transfer
from keras_vmoe.checkpoints.transfer import transfer as transfer
