"""Functional Keras models and their presets."""

from keras_vmoe.models.base import FunctionalModel as FunctionalModel
from keras_vmoe.models.classifier import Classifier as Classifier
from keras_vmoe.models.efficient_ensemble import EfficientEnsemble as EfficientEnsemble
from keras_vmoe.models.efficient_ensemble import averaged_prediction as averaged_prediction
from keras_vmoe.models.features import feature_extractor as feature_extractor
from keras_vmoe.models.placement import moe_blocks as moe_blocks
from keras_vmoe.models.reference import from_reference_config as from_reference_config
from keras_vmoe.models.rewiring import with_image_mask as with_image_mask
from keras_vmoe.models.rewiring import with_routing as with_routing
from keras_vmoe.models.sparse import exact_capacity as exact_capacity
from keras_vmoe.models.sparse import is_sparse as is_sparse
from keras_vmoe.models.sparse import moe_layers as moe_layers
from keras_vmoe.models.variants import from_variant as from_variant
from keras_vmoe.models.variants import list_variants as list_variants
from keras_vmoe.models.vit import ViT as ViT
from keras_vmoe.models.vmoe import VMoE as VMoE
