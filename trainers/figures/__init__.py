"""`keras-vmoe figures`: the figures of V-MoE from finished runs, each with its data as CSV."""

from keras_vmoe.trainers.figures.command import main as main
