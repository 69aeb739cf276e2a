"""Weights of other implementations, and of other models."""

from keras_vmoe.checkpoints.architecture import infer_arguments as infer_arguments
from keras_vmoe.checkpoints.as_vit import assign_as_vit_params as assign_as_vit_params
from keras_vmoe.checkpoints.errors import CheckpointError as CheckpointError
from keras_vmoe.checkpoints.reference import assign_reference_params as assign_reference_params
from keras_vmoe.checkpoints.reference import reference_variables as reference_variables
from keras_vmoe.checkpoints.released import Loaded as Loaded
from keras_vmoe.checkpoints.released import load as load
from keras_vmoe.checkpoints.released import load_model as load_model
from keras_vmoe.checkpoints.sources import open_arrays as open_arrays
from keras_vmoe.checkpoints.transfer import FRESH as FRESH
from keras_vmoe.checkpoints.transfer import Transfer as Transfer
from keras_vmoe.checkpoints.transfer import transfer as transfer
from keras_vmoe.checkpoints.upcycling import upcycle as upcycle
from keras_vmoe.checkpoints.upcycling import upcycle_into as upcycle_into
from keras_vmoe.checkpoints.vit_npz import save_vit_npz as save_vit_npz
from keras_vmoe.checkpoints.vmoe_files import StoredArray as StoredArray
from keras_vmoe.checkpoints.vmoe_files import VMoECheckpoint as VMoECheckpoint
from keras_vmoe.checkpoints.vmoe_files import load_vmoe as load_vmoe
from keras_vmoe.checkpoints.vmoe_writer import save_vmoe as save_vmoe
