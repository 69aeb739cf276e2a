"""As-ViT's search and growth: measures of untrained networks, and what they decide.

It runs on TensorFlow alone.
"""

from keras_vmoe.autoscale.growth import GROWTH_RATES as GROWTH_RATES
from keras_vmoe.autoscale.growth import Grown as Grown
from keras_vmoe.autoscale.growth import Growth as Growth
from keras_vmoe.autoscale.growth import Size as Size
from keras_vmoe.autoscale.growth import best_candidate as best_candidate
from keras_vmoe.autoscale.growth import candidates as candidates
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
from keras_vmoe.autoscale.policy import Policy as Policy
from keras_vmoe.autoscale.repeats import Measures as Measures
from keras_vmoe.autoscale.repeats import Protocol as Protocol
from keras_vmoe.autoscale.repeats import mean_measures as mean_measures
from keras_vmoe.autoscale.rewards import reward as reward
from keras_vmoe.autoscale.search import Search as Search
from keras_vmoe.autoscale.search import Step as Step
from keras_vmoe.autoscale.space import SearchSpace as SearchSpace
from keras_vmoe.autoscale.weights import count_params as count_params
from keras_vmoe.autoscale.weights import draw_weights as draw_weights
from keras_vmoe.autoscale.weights import model_weights as model_weights
