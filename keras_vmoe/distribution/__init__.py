"""Expert parallelism: a mesh of devices, where variables lie on it, and a training step.

`Mesh` and `TrainStep` are of the TensorFlow backend, by DTensor; `JaxMesh` and `JaxTrainStep` of
the JAX backend, by `keras.distribution`. Models, optimizers and rules are placed alike on both.
"""

from keras_vmoe.distribution.compiled import StepCost as StepCost
from keras_vmoe.distribution.compiled import compile_step as compile_step
from keras_vmoe.distribution.compiled import scaled as scaled
from keras_vmoe.distribution.compiled import static_bytes as static_bytes
from keras_vmoe.distribution.jax_mesh import JaxMesh as JaxMesh
from keras_vmoe.distribution.jax_training import JaxTrainStep as JaxTrainStep
from keras_vmoe.distribution.mesh import Mesh as Mesh
from keras_vmoe.distribution.mesh import virtual_cpus as virtual_cpus
from keras_vmoe.distribution.placement import build_model as build_model
from keras_vmoe.distribution.placement import build_optimizer as build_optimizer
from keras_vmoe.distribution.placement import gather_model as gather_model
from keras_vmoe.distribution.placement import place_metrics as place_metrics
from keras_vmoe.distribution.placement import place_model as place_model
from keras_vmoe.distribution.placement import place_optimizer as place_optimizer
from keras_vmoe.distribution.rules import EXPERT_RULES as EXPERT_RULES
from keras_vmoe.distribution.rules import Rule as Rule
from keras_vmoe.distribution.storage import assign as assign
from keras_vmoe.distribution.storage import bytes_per_device as bytes_per_device
from keras_vmoe.distribution.storage import to_numpy as to_numpy
from keras_vmoe.distribution.topology import Topology as Topology
from keras_vmoe.distribution.topology import slices_of as slices_of
from keras_vmoe.distribution.training import TrainStep as TrainStep
from keras_vmoe.distribution.training import require_groups as require_groups
