"""Super-classes that datasets come with."""

from __future__ import annotations

from keras_vmoe.ops.validation import require_choice
from keras_vmoe.superclass.mapping import Superclasses

# Krizhevsky 2009: the 20 coarse labels of CIFAR-100 and the 5 fine labels of each, as the dataset
# spells and orders them.
_CIFAR100 = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}

# Lin et al. 2014: the 12 super-categories of COCO and their categories, in the order of their ids.
_COCO = {
    "person": "person",
    "vehicle": "bicycle, car, motorcycle, airplane, bus, train, truck, boat",
    "outdoor": "traffic light, fire hydrant, stop sign, parking meter, bench",
    "animal": "bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe",
    "accessory": "backpack, umbrella, handbag, tie, suitcase",
    "sports": "frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, "
    "skateboard, surfboard, tennis racket",
    "kitchen": "bottle, wine glass, cup, fork, knife, spoon, bowl",
    "food": "banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake",
    "furniture": "chair, couch, potted plant, bed, dining table, toilet",
    "electronic": "tv, laptop, mouse, remote, keyboard, cell phone",
    "appliance": "microwave, oven, toaster, sink, refrigerator",
    "indoor": "book, clock, vase, scissors, teddy bear, hair drier, toothbrush",
}

#: The names that `hierarchy` knows.
HIERARCHIES = ("cifar100", "coco")


def hierarchy(name: str) -> Superclasses:
    """Returns the super-classes that a dataset comes with.

    Args:
        name: "cifar100", the 20 coarse labels of its 100 classes; or "coco", the 12
            super-categories of its 80 categories.

    Returns:
        The super-classes, numbered as the dataset does, for classes in the order of its labels; see
        `Superclasses.for_classes` for another order.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> coarse = hierarchy("cifar100")
        >>> coarse.num_superclasses, coarse.names[1], coarse.members(1)
        (20, 'fish', ('aquarium_fish', 'flatfish', 'ray', 'shark', 'trout'))
    """
    require_choice("name", name, HIERARCHIES)
    if name == "coco":
        groups = {group: classes.split(", ") for group, classes in _COCO.items()}
        order = [one for classes in groups.values() for one in classes]
    else:
        groups = {group: classes.split() for group, classes in _CIFAR100.items()}
        order = sorted(one for classes in groups.values() for one in classes)
    numbers = {one: i for i, classes in enumerate(groups.values()) for one in classes}
    return Superclasses([numbers[one] for one in order], order, list(groups), method=name)
