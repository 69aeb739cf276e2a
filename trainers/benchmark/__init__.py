"""`keras-vmoe benchmark`: layers and models against their dense twins, in one run on one machine.

    command.py      the command line
    settings.py     what is measured: the grids and their defaults
    timing.py       interleaved rounds, medians, ratios
    layer.py        the MoE layer beside a dense MLP of the same work; capacity against time
    model.py        V-MoE beside a plain Keras ViT, forward and training step
    plain_vit.py    that plain ViT
    memory.py       peak memory, in a process of its own
    environment.py  the machine, the versions, the load
    tables.py       the text tables
    progress.py     the line that shows how far it is
"""

from keras_vmoe.trainers.benchmark.command import main as main
