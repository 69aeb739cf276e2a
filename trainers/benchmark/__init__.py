"""`keras-vmoe benchmark`: layers and models against their dense twins, and input pipelines.

- `command`: the command line
- `input_command`: that of `benchmark input`
- `report`: what every table begins and ends with
- `shared_flags`: flags that several tables have
- `settings`: what is measured, the grids and their defaults
- `timing`: interleaved rounds, medians, ratios
- `graphs`: calls of layers as TensorFlow graphs, with gradients
- `layer`: the MoE layer beside a dense MLP of the same work; capacity against time
- `dispatch`: the ways to the experts beside one another, and the choice; `dispatch_command`
- `model`: V-MoE beside a plain Keras ViT, forward and training step
- `step`: where the CPU time of a step goes, part by part; `step_command`; found: `PROFILE.md`
- `plain_vit`: that plain ViT
- `input`: the images a second of an input pipeline, stage by stage
- `device`: LiteRT files of Mobile V-MoE beside their dense twins; `device_command`,
  `device_memory`
- `autoscale`: what a search spends on a topology
- `inference`: images a second of a V-MoE against capacity; `inference_command`
- `scaling`: costs as one thing at a time changes; `scaling_grid`, `scaling_command`
- `child`: processes that measure, and what they tell
- `memory`: peak memory, in a process of its own
- `environment`: the machine, the versions, the load
- `tables`: the text tables
- `against`: an earlier run beside this one
"""

from keras_vmoe.trainers.benchmark.command import main as main
