"""Keras layers: routers, experts, the sparse MLP and the parts of a vision transformer."""

from keras_vmoe.layers import routers as routers
from keras_vmoe.layers.effects import handed_noise as handed_noise
from keras_vmoe.layers.effects import metrics_enabled as metrics_enabled
from keras_vmoe.layers.effects import record_routing as record_routing
from keras_vmoe.layers.effects import routing_metrics as routing_metrics
from keras_vmoe.layers.embedding import ClassToken as ClassToken
from keras_vmoe.layers.embedding import PatchEmbedding as PatchEmbedding
from keras_vmoe.layers.embedding import PositionEmbedding as PositionEmbedding
from keras_vmoe.layers.embedding import resize_position_embedding as resize_position_embedding
from keras_vmoe.layers.embedding import sincos_2d as sincos_2d
from keras_vmoe.layers.ensemble_router import EnsembleTopKRouter as EnsembleTopKRouter
from keras_vmoe.layers.experts import ExpertMLP as ExpertMLP
from keras_vmoe.layers.members import EnsembleAverage as EnsembleAverage
from keras_vmoe.layers.members import RepeatMembers as RepeatMembers
from keras_vmoe.layers.members import SplitMembers as SplitMembers
from keras_vmoe.layers.moe_mlp import MoEMLP as MoEMLP
from keras_vmoe.layers.pooling import AttentionPooling as AttentionPooling
from keras_vmoe.layers.pooling import TokenPooling as TokenPooling
from keras_vmoe.layers.router import Router as Router
from keras_vmoe.layers.routers import ExpertChoiceRouter as ExpertChoiceRouter
from keras_vmoe.layers.routers import SoftRouter as SoftRouter
from keras_vmoe.layers.routers import TopKRouter as TopKRouter
from keras_vmoe.layers.transformer import MLP as MLP
from keras_vmoe.layers.transformer import EncoderBlock as EncoderBlock
from keras_vmoe.layers.transformer import MultiHeadAttention as MultiHeadAttention
