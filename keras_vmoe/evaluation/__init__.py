"""What a trained model can do: accuracy, few-shot transfer, zero-shot classification, retrieval,
objects detected, accuracy against capacity.
"""

from keras_vmoe.evaluation.coco import COCO_METRICS as COCO_METRICS
from keras_vmoe.evaluation.coco import CocoMetrics as CocoMetrics
from keras_vmoe.evaluation.coco import CocoResult as CocoResult
from keras_vmoe.evaluation.coco import coco_words as coco_words
from keras_vmoe.evaluation.embeddings import collect_pair_embeddings as collect_pair_embeddings
from keras_vmoe.evaluation.few_shot import SEEDS as SEEDS
from keras_vmoe.evaluation.few_shot import SHOTS as SHOTS
from keras_vmoe.evaluation.few_shot import FewShotData as FewShotData
from keras_vmoe.evaluation.few_shot import FewShotResult as FewShotResult
from keras_vmoe.evaluation.few_shot import few_shot_accuracy as few_shot_accuracy
from keras_vmoe.evaluation.few_shot import few_shot_table as few_shot_table
from keras_vmoe.evaluation.few_shot import few_shot_transfer as few_shot_transfer
from keras_vmoe.evaluation.few_shot import rows_needed as rows_needed
from keras_vmoe.evaluation.few_shot import sample_shots as sample_shots
from keras_vmoe.evaluation.image_routing import ImageRouting as ImageRouting
from keras_vmoe.evaluation.image_routing import image_routing as image_routing
from keras_vmoe.evaluation.passes import Evaluation as Evaluation
from keras_vmoe.evaluation.passes import Evaluator as Evaluator
from keras_vmoe.evaluation.passes import LayerRouting as LayerRouting
from keras_vmoe.evaluation.passes import Loss as Loss
from keras_vmoe.evaluation.passes import collect_features as collect_features
from keras_vmoe.evaluation.passes import evaluate as evaluate
from keras_vmoe.evaluation.passes import softmax_loss as softmax_loss
from keras_vmoe.evaluation.retrieval import RECALL_KS as RECALL_KS
from keras_vmoe.evaluation.retrieval import RetrievalResult as RetrievalResult
from keras_vmoe.evaluation.retrieval import retrieval_recalls as retrieval_recalls
from keras_vmoe.evaluation.retrieval import retrieval_table as retrieval_table
from keras_vmoe.evaluation.ridge import L2_REGS as L2_REGS
from keras_vmoe.evaluation.ridge import ridge_accuracy as ridge_accuracy
from keras_vmoe.evaluation.sweep import CAPACITY_FACTORS as CAPACITY_FACTORS
from keras_vmoe.evaluation.sweep import PRIORITIES as PRIORITIES
from keras_vmoe.evaluation.sweep import RoutingSetting as RoutingSetting
from keras_vmoe.evaluation.sweep import SweepRow as SweepRow
from keras_vmoe.evaluation.sweep import routing_settings as routing_settings
from keras_vmoe.evaluation.sweep import routing_sweep as routing_sweep
from keras_vmoe.evaluation.sweep import sweep_calls as sweep_calls
from keras_vmoe.evaluation.uncertainty import Calibration as Calibration
from keras_vmoe.evaluation.uncertainty import brier_score as brier_score
from keras_vmoe.evaluation.uncertainty import calibration as calibration
from keras_vmoe.evaluation.uncertainty import (
    expected_calibration_error as expected_calibration_error,
)
from keras_vmoe.evaluation.uncertainty import negative_log_likelihood as negative_log_likelihood
from keras_vmoe.evaluation.zero_shot import ZeroShotResult as ZeroShotResult
from keras_vmoe.evaluation.zero_shot import class_embeddings as class_embeddings
from keras_vmoe.evaluation.zero_shot import zero_shot_accuracy as zero_shot_accuracy
from keras_vmoe.evaluation.zero_shot import zero_shot_classify as zero_shot_classify
from keras_vmoe.evaluation.zero_shot import zero_shot_table as zero_shot_table
