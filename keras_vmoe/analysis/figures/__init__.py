"""Pictures of what a model does. Matplotlib is imported when a picture is drawn."""

from keras_vmoe.analysis.figures.routing import plot_routing as plot_routing
