"""Trained models outside of Keras: SavedModel, ONNX and LiteRT files, and running them."""

from keras_vmoe.serving.exporting import FORMATS as FORMATS
from keras_vmoe.serving.exporting import export as export
from keras_vmoe.serving.loading import ExportedModel as ExportedModel
from keras_vmoe.serving.loading import load as load
from keras_vmoe.serving.metadata import Metadata as Metadata
from keras_vmoe.serving.pair_exporting import export_pairs as export_pairs
from keras_vmoe.serving.pair_loading import ExportedPairModel as ExportedPairModel
from keras_vmoe.serving.pair_loading import PairMetadata as PairMetadata
from keras_vmoe.serving.pair_loading import load_pairs as load_pairs
from keras_vmoe.serving.routing import images_alone as images_alone
