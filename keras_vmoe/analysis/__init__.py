"""What a model costs and what it does: profiles, routing records, figures.

`keras_vmoe.analysis.figures` draws; it needs matplotlib and is imported on its own.
"""

from keras_vmoe.analysis.layer_rows import LayerCall as LayerCall
from keras_vmoe.analysis.layer_rows import layer_profile as layer_profile
from keras_vmoe.analysis.modalities import effective_experts as effective_experts
from keras_vmoe.analysis.modalities import modality_counts as modality_counts
from keras_vmoe.analysis.modalities import modality_shares as modality_shares
from keras_vmoe.analysis.modalities import success_rates as success_rates
from keras_vmoe.analysis.model_rows import register_model as register_model
from keras_vmoe.analysis.profiling import profile as profile
from keras_vmoe.analysis.records import RoutingRecord as RoutingRecord
from keras_vmoe.analysis.records import routing_records as routing_records
from keras_vmoe.analysis.retokenization import PhaseCost as PhaseCost
from keras_vmoe.analysis.retokenization import RetokenizationCost as RetokenizationCost
from keras_vmoe.analysis.retokenization import retokenization_cost as retokenization_cost
from keras_vmoe.analysis.router_values import RouterDraw as RouterDraw
from keras_vmoe.analysis.router_values import RouterValue as RouterValue
from keras_vmoe.analysis.router_values import random_routers as random_routers
from keras_vmoe.analysis.router_values import router_value as router_value
from keras_vmoe.analysis.routing_costs import register_router as register_router
from keras_vmoe.analysis.routing_statistics import LayerStatistics as LayerStatistics
from keras_vmoe.analysis.routing_statistics import RoutingStatistics as RoutingStatistics
from keras_vmoe.analysis.routing_statistics import collect_statistics as collect_statistics
from keras_vmoe.analysis.rows import LayerProfile as LayerProfile
from keras_vmoe.analysis.rows import Profile as Profile
from keras_vmoe.analysis.run_summary import RunSummary as RunSummary
