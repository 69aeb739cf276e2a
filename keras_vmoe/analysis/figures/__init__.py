"""Pictures of what models do, each with its data as CSV beside it.

Matplotlib is imported when a picture is drawn.
"""

from keras_vmoe.analysis.figures.buffers import plot_buffers as plot_buffers
from keras_vmoe.analysis.figures.capacity import plot_capacity as plot_capacity
from keras_vmoe.analysis.figures.confusion import plot_confusion as plot_confusion
from keras_vmoe.analysis.figures.confusion_graph import plot_confusion_graph as plot_confusion_graph
from keras_vmoe.analysis.figures.detections import DetectedObjects as DetectedObjects
from keras_vmoe.analysis.figures.detections import plot_detections as plot_detections
from keras_vmoe.analysis.figures.dropped_patches import plot_dropped_patches as plot_dropped_patches
from keras_vmoe.analysis.figures.expert_class import plot_expert_class as plot_expert_class
from keras_vmoe.analysis.figures.expert_modality import plot_expert_modality as plot_expert_modality
from keras_vmoe.analysis.figures.expert_position import plot_expert_position as plot_expert_position
from keras_vmoe.analysis.figures.experts_per_image import (
    plot_experts_per_image as plot_experts_per_image,
)
from keras_vmoe.analysis.figures.gate_order import plot_gate_order as plot_gate_order
from keras_vmoe.analysis.figures.gate_weights import plot_gate_weights as plot_gate_weights
from keras_vmoe.analysis.figures.inference_speed import plot_inference_speed as plot_inference_speed
from keras_vmoe.analysis.figures.k_matrix import SelectedSweep as SelectedSweep
from keras_vmoe.analysis.figures.k_matrix import plot_k_matrix as plot_k_matrix
from keras_vmoe.analysis.figures.patches_of_experts import (
    plot_patches_of_experts as plot_patches_of_experts,
)
from keras_vmoe.analysis.figures.quality_cost import plot_quality_cost as plot_quality_cost
from keras_vmoe.analysis.figures.router_value import plot_router_value as plot_router_value
from keras_vmoe.analysis.figures.routing import plot_routing as plot_routing
from keras_vmoe.analysis.figures.scaling import plot_scaling as plot_scaling
from keras_vmoe.analysis.figures.success_rates import plot_success_rates as plot_success_rates
from keras_vmoe.analysis.figures.sweeps import plot_sweeps as plot_sweeps
from keras_vmoe.analysis.figures.sweeps import swept as swept
from keras_vmoe.analysis.figures.tokens_of_experts import (
    plot_tokens_of_experts as plot_tokens_of_experts,
)
