"""What a training run can be told: the parameters of `train` in a gin file."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import keras

from keras_vmoe import ops
from keras_vmoe.ops.classification import LOSSES
from keras_vmoe.trainers import retokenization

if TYPE_CHECKING:
    from keras_vmoe import data
    from keras_vmoe.trainers.measurement import Measurement
    from keras_vmoe.trainers.pairs import Pairs

ONE_DEVICE, MIRRORED, MULTI_WORKER = "one_device", "mirrored", "multi_worker"
TPU, MESH = "tpu", "mesh"
DISTRIBUTIONS = (ONE_DEVICE, MIRRORED, MULTI_WORKER, TPU, MESH)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run. Gin calls it `train`: `train.epochs = 30`.

    Args:
        model: called with `image_size`, `channels` and `num_classes`, returns a Keras model that
            maps images in [-1, 1] to logits; `@VMoE`, `@ViT`, `@EfficientEnsemble` or
            `@from_variant` in gin. Of image-text pairs it is called with `image_size`, `channels`,
            `vocabulary_size`, `text_length` and `eos_id`: `@LIMoE` or `@TwoTower`. Of images with
            boxes with `backbone`, `num_classes` and `class_names`: `@RetinaNet`.
        optimizer: called with `total_steps` and `steps_per_epoch`, returns a Keras optimizer;
            `@adamw`, `@sgd` or `@adafactor` in gin.
        dataset: called without arguments, returns an `ImageSource`, or image-text pairs;
            `@dataset`, `@pairs` or `@boxes` in gin.
        image_size: side of the images in pixels, as the model sees them.
        crop: how a training image becomes a square: `@InceptionCrop()` or `@CentralCrop()` in gin;
            None: it is squashed. Images with boxes take `@ScaleJitter()`; None fits them in.
        eval_crop: the same of held-out images.
        augment: what happens to a training image then: `@Augment()`, `@Flip()`, `@RandAugment()`,
            `@ColorJitter()`, `@RandomErasing()` in gin, or several of them, `(@Flip(), ...)`.
        mix: what happens to a training batch: `@Mixup()` or `@CutMix()` in gin, or several, of
            which each batch gets one.
        repeats: how often an image comes in an epoch, each time augmented anew; an epoch keeps its
            length, so it holds that many times fewer images.
        cache: keep the encoded images in memory after they were read once.
        channels: 1 or 3; None: as the data has them.
        backbone: of a detector: called with `image_size`, `channels` and `num_classes=None`;
            `@AsViT` or `@from_variant` in gin.
        loss: "softmax" or "sigmoid".
        label_smoothing: share of the probability that is spread over all classes.
        init_from: start from the weights of a run's workdir, a `.keras` or `.npz` file, or a
            released checkpoint; the command's `--init_from` is the same.
        keep_head: take over the head as well then, instead of making it anew.
        upcycle: `init_from` is a dense model, whose MLPs every expert starts as (sparse upcycling).
        batch_size: images of one step, over all devices.
        eval_batch_size: images of one evaluation step, over all devices.
        epochs: length of the run; ignored, and may be None, when `steps` is given.
        steps: length of the run in steps.
        log_every: steps between two rows of training metrics.
        eval_every: steps between two evaluations; None: at the end only.
        checkpoint_every: steps between two checkpoints; None: at the end only. Ctrl-C makes one.
        keep_checkpoints: how many of the newest are kept.
        keep_best: keep the one of the best held-out accuracy besides, in `checkpoints/best`.
        retokenization: `((until_epoch, stride, dilation), ...)`: coarse phases of an `@AsViT`, such
            as `((40, 16, 5), (70, 8, 2))`; from the last one's end on the tokens are the model's
            own. Evaluation has these throughout.
        few_shot: `@FewShot()` in gin: measure few-shot transfer beside the evaluations.
        retrieval: `@Retrieval()`: measure retrieval among the held-out pairs, of image-text pairs.
        zero_shot: `@ZeroShot()`: measure zero-shot classification, of image-text pairs.
        seed: of the initial weights, the order of the images, augmentation and noise.
        routing_images: how many images `routing.png` shows; 0: no picture.
        picture_every: steps between two drawings of it, at evaluations, which TensorBoard keeps;
            None: at the end only.
        distribution: "one_device": the first GPU, or the CPU; "mirrored": all GPUs of the machine,
            or its logical CPUs; "multi_worker": the processes that TF_CONFIG lists; "tpu"; "mesh":
            experts and images are split over devices.
        tpu: name or address of the TPU; None: that of this machine; the command's `--tpu`.
        mesh: sizes of the mesh, such as "batch:2,expert:4"; the command's `--mesh` sets both.
    """

    model: Callable[..., Any]
    optimizer: Callable[..., Any]
    dataset: Callable[..., Any]
    image_size: int
    crop: Any = None
    eval_crop: Any = None
    augment: Any = None
    mix: Any = None
    repeats: int = 1
    cache: bool = False
    channels: int | None = None
    backbone: Callable[..., Any] | None = None
    loss: str = "softmax"
    label_smoothing: float = 0.0
    init_from: str | None = None
    keep_head: bool = False
    upcycle: bool = False
    batch_size: int = 128
    eval_batch_size: int = 256
    epochs: float | None = 10.0
    steps: int | None = None
    log_every: int = 50
    eval_every: int | None = None
    checkpoint_every: int | None = None
    keep_checkpoints: int = 2
    keep_best: bool = True
    retokenization: Any = ()
    few_shot: Any = None
    retrieval: Any = None
    zero_shot: Any = None
    seed: int = 0
    routing_images: int = 4
    picture_every: int | None = None
    distribution: str = ONE_DEVICE
    tpu: str | None = None
    mesh: str | None = None

    def __post_init__(self) -> None:
        for name in ("model", "optimizer", "dataset", "backbone"):
            value = getattr(self, name)
            if name == "backbone" and value is None:
                continue
            # A built model is callable too, but makes no model.
            if not (inspect.isroutine(value) or inspect.isclass(value)):
                raise ValueError(
                    f"train.{name}={value!r} is not a reference; "
                    f"write it with an at sign and without brackets, such as train.{name} = @name"
                )
        self._check_positive("image_size", "batch_size", "eval_batch_size", "log_every", "repeats")
        self._check_positive("keep_checkpoints", *(["epochs"] if self.steps is None else []))
        self._check_positive(
            *(
                n
                for n in ("steps", "eval_every", "checkpoint_every", "picture_every")
                if getattr(self, n) is not None
            )
        )
        for name, made in (
            ("few_shot", "FewShot"),
            ("retrieval", "Retrieval"),
            ("zero_shot", "ZeroShot"),
        ):
            value = getattr(self, name)
            if value is not None and not hasattr(value, "measure"):
                raise ValueError(
                    f"train.{name}={value!r} is no {name.replace('_', '-')} measurement; write it "
                    f"with brackets: train.{name} = @{made}()"
                )
        for name in ("cache", "keep_head", "upcycle", "keep_best"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"train.{name}={getattr(self, name)!r} must be True or False")
        for name in ("seed", "routing_images"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ValueError(f"train.{name}={value!r} must be a whole number of 0 or more")
        if self.channels not in (None, 1, 3):
            raise ValueError(f"train.channels={self.channels!r} must be 1, 3 or None")
        if self.init_from is not None and not isinstance(self.init_from, str):
            raise ValueError(f"train.init_from={self.init_from!r} must be a path in quotes")
        if self.upcycle and self.init_from is None:
            raise ValueError(
                "train.upcycle=True needs the dense model to start from: --init_from=WORKDIR"
            )
        if retokenization.phases_of(self.retokenization) and self.distribution == MESH:
            raise ValueError(
                f"train.retokenization={self.retokenization!r} is not built for a mesh; leave out "
                "--mesh, or the phases"
            )
        self._check_choice("loss", LOSSES)
        self._check_choice("distribution", DISTRIBUTIONS)
        if (self.mesh is not None) != (self.distribution == MESH):
            raise ValueError(
                f"train.mesh={self.mesh!r} and train.distribution={self.distribution!r} do not go "
                "together; --mesh=batch:2,expert:4 sets both"
            )
        smoothing = self.label_smoothing
        if not isinstance(smoothing, (int, float)) or not 0 <= smoothing < 1:
            raise ValueError(f"train.label_smoothing={self.label_smoothing!r} must be in [0, 1)")

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """What is measured at evaluations beside them."""
        found = (self.few_shot, self.retrieval, self.zero_shot)
        return tuple(one for one in found if one is not None)

    def total_steps(self, steps_per_epoch: int) -> int:
        """Returns the length of the run in steps.

        Args:
            steps_per_epoch: batches of one epoch.
        """
        return self.steps or max(round(self.epochs * steps_per_epoch), 1)

    def image_channels(self, source: data.ImageSource | data.BoxSource | Pairs) -> int:
        """Returns the channels of the images, as the model sees them.

        Args:
            source: the run's data.
        """
        return self.channels or source.image_shape[-1]

    def make_model(self, source: data.ImageSource) -> keras.Model:
        """Returns the model for the images and classes of a dataset.

        Args:
            source: the run's data.
        """
        return self.model(
            image_size=self.image_size,
            channels=self.image_channels(source),
            num_classes=source.num_classes,
        )

    def image_losses(self, labels: Any, logits: Any) -> Any:
        """Returns the loss of each image; see `ops.classification_loss`."""
        return ops.classification_loss(labels, logits, self.loss, self.label_smoothing)

    def class_logits(self, logits: Any) -> Any:
        """Returns the logits of what the model predicts; see `ops.ensemble_logits`."""
        return ops.ensemble_logits(logits, self.loss)

    def _check_positive(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            kind = "a positive number" if name == "epochs" else "a positive whole number"
            types = (int, float) if name == "epochs" else int
            if not isinstance(value, types) or isinstance(value, bool) or value <= 0:
                raise ValueError(f"train.{name}={value!r} must be {kind}")

    def _check_choice(self, name: str, choices: Sequence[str]) -> None:
        if getattr(self, name) not in choices:
            known = ", ".join(repr(choice) for choice in choices)
            raise ValueError(f"train.{name}={getattr(self, name)!r} is unknown; known: {known}")
