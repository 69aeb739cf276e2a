"""As-ViT's search and growth: measures of untrained networks, and what they decide.

It runs on TensorFlow alone.
"""

from keras_vmoe.autoscale.measures import CONVENTIONS as CONVENTIONS
from keras_vmoe.autoscale.measures import Curve as Curve
from keras_vmoe.autoscale.measures import CurveMeasures as CurveMeasures
from keras_vmoe.autoscale.measures import condition_number as condition_number
from keras_vmoe.autoscale.measures import curve_measures as curve_measures
from keras_vmoe.autoscale.measures import draw_circle as draw_circle
from keras_vmoe.autoscale.measures import gauss_length_as_coded as gauss_length_as_coded
from keras_vmoe.autoscale.measures import manifold_length as manifold_length
from keras_vmoe.autoscale.measures import ntk_condition_number as ntk_condition_number
from keras_vmoe.autoscale.measures import trace_curve as trace_curve
from keras_vmoe.autoscale.weights import draw_weights as draw_weights
from keras_vmoe.autoscale.weights import model_weights as model_weights
