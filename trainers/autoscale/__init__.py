"""`keras-vmoe autoscale`: As-ViT's search and growth, as commands."""
