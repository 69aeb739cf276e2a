import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_vmoe import autoscale, checkpoints, models
from keras_vmoe.autoscale.gram import ntk_gram
from keras_vmoe.autoscale.measures import integrate
from tests.support import golden

TINY = "5,2,2|3,1,2|2,1,2,2|4,1,2|16,9"


def reference(name, dtype="float64"):
    file = golden.load(f"asvit/{name}")
    genotype = f"{file.config['genotype']},{file.config['hidden']}"
    model = models.AsViT(genotype, num_classes=None, image_size=file.config["image_size"])
    checkpoints.assign_as_vit_params(model, file.under("params"))
    weights = autoscale.model_weights(model)
    return file, genotype, {name: value.astype(dtype) for name, value in weights.items()}


@pytest.fixture(scope="module")
def circle_case():
    file, genotype, weights = reference("curve_seed_c8_random_r20_64")
    axes = [file[name].reshape(3, 64, 64).transpose(1, 2, 0) for name in ("u0", "u1")]
    return file, genotype, weights, np.stack(axes).astype("float64")


def random_weights(genotype=TINY, seed=0, scale=8.0, dtype="float64"):
    """Weights large enough for nothing to be nearly linear, with biases and norms that act."""
    model = models.AsViT(genotype, num_classes=None, image_size=32)
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        variable.assign(variable + rng.normal(size=variable.shape) * 0.01 * scale)
    weights = autoscale.model_weights(model)
    return model, {name: value.astype(dtype) for name, value in weights.items()}


# The published code's numbers.


def test_curve_is_that_of_the_reference(circle_case):
    file, genotype, weights, circle = circle_case
    curve = autoscale.trace_curve(genotype, weights, circle)
    assert golden.max_error(curve.speed, file["le_norms64"]) < 1e-6
    assert golden.max_error(curve.curvature, file["kappa_jvp64"]) < 1e-6
    assert golden.max_error(curve.turning, file["lg_true_per_theta64"]) < 1e-6
    accelerations = np.linalg.norm(file["acc_jvp64"], axis=1)
    assert golden.max_error(curve.acceleration, accelerations) < 1e-6
    as_coded = autoscale.gauss_length_as_coded(curve)
    assert as_coded == pytest.approx(float(file["lg_code_sum64"]), rel=1e-6)


def test_integrals_are_those_of_the_reference(circle_case):
    file, genotype, weights, circle = circle_case
    found = autoscale.curve_measures(genotype, weights, circle)
    wanted = [float(file[name]) for name in ("le_sum64", "kappa_sum64", "lg_true_sum64")]
    assert found == pytest.approx(wanted, rel=1e-6)


def test_length_in_single_precision_is_that_of_the_reference(circle_case):
    file, genotype, weights, circle = circle_case
    weights = {name: value.astype("float32") for name, value in weights.items()}
    found = autoscale.manifold_length(genotype, weights, circle.astype("float32"))
    assert found == pytest.approx(float(file["le_sum64"]), rel=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("float64", 1e-7)])
def test_ntk_is_that_of_the_reference(dtype, tolerance):
    file, genotype, weights = reference("ntk_seed_c8_random_64", dtype)
    images = file["x_NCHW"].transpose(0, 2, 3, 1).astype(dtype)
    gram = ntk_gram(images, models.Genotype.parse(genotype), weights)
    assert gram.dtype == np.float64
    assert golden.max_error(gram, file["gram64"]) < tolerance
    found = autoscale.ntk_condition_number(images, genotype, weights)
    assert found == pytest.approx(float(file["cond64"]), rel=100 * tolerance)


# Against TensorFlow's own derivatives of the Keras model.


def keras_features(model, norm):
    twin = models.AsViT(model.genotype, num_classes=None, image_size=32, norm=norm)
    by_path = {variable.path: variable for variable in model.weights}
    for variable in twin.weights:
        variable.assign(by_path[variable.path])
    features = models.pooled_features(twin)
    return twin, lambda images: features(images)["pre_norm"]


@pytest.mark.slow
def test_curve_is_what_forward_accumulators_give_of_the_model():
    model, weights = random_weights(dtype="float32")
    circle = autoscale.draw_circle(np.random.default_rng(1), 32) * 20
    curve = autoscale.trace_curve(TINY, weights, circle, num_angles=3)
    _, features = keras_features(model, "identity")
    for i, angle in enumerate(np.linspace(0, 2 * np.pi, 3)[:2]):
        x = np.cos(angle) * circle[:1] + np.sin(angle) * circle[1:]
        dx = -np.sin(angle) * circle[:1] + np.cos(angle) * circle[1:]
        x, dx, ddx = (tf.constant(value, "float32") for value in (x, dx, -x))
        with tf.autodiff.ForwardAccumulator(x, dx) as outer:
            with tf.autodiff.ForwardAccumulator(x, dx) as inner:
                z = features(x)
            v = inner.jvp(z)
        bent = outer.jvp(v)
        with tf.autodiff.ForwardAccumulator(x, ddx) as accumulator:
            z = features(x)
        a = np.array(bent + accumulator.jvp(z))[0]
        v = np.array(v)[0]
        assert curve.speed[i] == pytest.approx(np.linalg.norm(v), rel=1e-4)
        assert curve.acceleration[i] == pytest.approx(np.linalg.norm(a), rel=1e-3)


def test_gram_is_that_of_the_gradients_of_the_model_image_by_image():
    model, weights = random_weights(dtype="float32")
    images = np.random.default_rng(2).normal(size=(3, 32, 32, 3)).astype("float32")
    twin, features = keras_features(model, "layer")
    counted = [
        v.value
        for v in twin.trainable_variables
        if v.path.endswith(("kernel", "gamma")) and not v.path.startswith("encoder_norm")
    ]
    rows = []
    for i in range(3):
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(features(images[i : i + 1]))
        parts = tape.gradient(total, counted)
        rows.append(np.concatenate([np.ravel(part).astype("float64") for part in parts]))
    wanted = np.array([[x @ y for y in rows] for x in rows])
    gram = ntk_gram(images, models.Genotype.parse(TINY), weights)
    assert golden.max_error(gram, wanted) < 1e-4


# What is known without a reference.


def test_an_isometry_has_the_length_of_the_circle():
    assert integrate(np.ones(10), "code") == 10.0
    paper = integrate(np.full(10, np.sqrt(3 * 224 * 224)), "paper")
    assert paper == pytest.approx(2437.746, abs=1e-3)


def linear_case(num_angles=10, **options):
    """A network whose blocks add nothing is linear."""
    genotype = "4,2,2|2,1,2|2,1,2|2,1,2|16,9"
    weights = autoscale.draw_weights(models.Genotype.parse(genotype), np.random.default_rng(0))
    for name in weights:
        if name.endswith(("attention_output/kernel", "mlp/output/kernel")):
            weights[name] = np.zeros_like(weights[name])
    circle = autoscale.draw_circle(np.random.default_rng(1), 32)
    return genotype, weights, circle


def linear_map(weights, images):
    """The tokens of a linear network, as a loop over the patches of the first embedding."""
    x = images
    for stage, stride in enumerate((4, 2, 2, 2)):
        name = f"merging_{stage}/projection" if stage else "embedding"
        side = x.shape[1] // stride
        rows = np.zeros((len(x), side, side, weights[f"{name}/kernel"].shape[1]))
        for i in range(side):
            for j in range(side):
                patch = x[:, i * stride : (i + 1) * stride, j * stride : (j + 1) * stride]
                rows[:, i, j] = patch.reshape(len(x), -1) @ weights[f"{name}/kernel"]
        x = rows
    return x.mean((1, 2))


def test_a_linear_network_has_the_length_of_the_mapped_circle():
    genotype, weights, circle = linear_case()
    mapped = linear_map(weights, circle)
    wanted = 0.0
    for angle in np.linspace(0, 2 * np.pi, 10):
        wanted += np.linalg.norm(-np.sin(angle) * mapped[0] + np.cos(angle) * mapped[1])
    found = autoscale.manifold_length(genotype, weights, circle)
    assert found == pytest.approx(wanted, rel=1e-5)
    in_paper = autoscale.manifold_length(genotype, weights, circle, "paper", num_angles=10)
    first = np.linalg.norm(mapped[1])
    scale = np.sqrt(3 * 32 * 32) * 2 * np.pi / 9
    assert in_paper == pytest.approx((wanted - first) * scale, rel=1e-5)


def test_length_scales_with_the_output_and_is_zero_of_a_constant():
    genotype, weights, circle = linear_case()
    length = autoscale.manifold_length(genotype, weights, circle)
    scaled = weights | {"merging_3/projection/kernel": 3 * weights["merging_3/projection/kernel"]}
    assert autoscale.manifold_length(genotype, scaled, circle) == pytest.approx(3 * length)
    constant = weights | {"embedding/kernel": 0 * weights["embedding/kernel"]}
    assert autoscale.manifold_length(genotype, constant, circle) == 0.0


def test_curvature_of_an_ellipse():
    genotype, weights, circle = linear_case()
    a, b = (np.float64(x) for x in linear_map(weights, circle))
    curve = autoscale.trace_curve(genotype, weights, circle)
    for i, angle in enumerate(np.linspace(0, 2 * np.pi, 10)):
        v = -np.sin(angle) * a + np.cos(angle) * b
        acceleration = -np.cos(angle) * a - np.sin(angle) * b
        along = v @ acceleration / (v @ v)
        # Of the acceleration what is not along the velocity, over the speed squared.
        bend = np.linalg.norm(acceleration - along * v) / (v @ v)
        assert curve.curvature[i] == pytest.approx(bend, rel=1e-3)
        assert curve.turning[i] == pytest.approx(bend * np.linalg.norm(v), rel=1e-3)


def test_circle_is_of_orthonormal_axes():
    axes = autoscale.draw_circle(np.random.default_rng(0), 32).reshape(2, -1)
    assert np.allclose(axes @ axes.T, np.eye(2), atol=1e-6)


def test_drawn_weights_are_named_and_shaped_as_the_models():
    genotype = models.Genotype.parse(TINY)
    drawn = autoscale.draw_weights(genotype, np.random.default_rng(0))
    _, of_model = random_weights()
    names = [n for n in of_model if not n.endswith(("gamma", "beta"))]
    assert {n: of_model[n].shape for n in names} == {n: drawn[n].shape for n in drawn}
    kernel = drawn["encoder_block_4/mlp/hidden/kernel"]
    assert kernel.std() == pytest.approx(0.02, rel=0.05)
    assert np.abs(drawn["embedding/kernel"]).max() <= 75**-0.5


def test_one_embedding_can_be_kept():
    genotype = models.Genotype.parse(TINY)

    def draw(seed, embedding_seed):
        return autoscale.draw_weights(
            genotype, np.random.default_rng(seed), np.random.default_rng(embedding_seed)
        )

    one, two = draw(0, 5), draw(1, 5)
    assert np.array_equal(one["embedding/bias"], two["embedding/bias"])
    assert not np.array_equal(
        one["merging_1/projection/kernel"], two["merging_1/projection/kernel"]
    )


@pytest.mark.parametrize(
    "gram", [np.full((2, 2), np.nan), np.ones((3, 3)), np.diag([1.0, -1.0]), np.zeros((2, 2))]
)
def test_condition_number_of_a_kernel_that_has_none(gram):
    assert np.isnan(autoscale.condition_number(gram))


def test_equal_images_make_a_singular_kernel():
    genotype, weights, _ = linear_case()
    image = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype("float32")
    found = autoscale.ntk_condition_number(np.repeat(image, 3, 0), genotype, weights)
    assert np.isnan(found)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g, w, c: autoscale.manifold_length(g, w, c, "codex"), "convention must be one of"),
        (lambda g, w, c: autoscale.manifold_length(g, w, c, num_angles=1), "at least 2.*1"),
        (lambda g, w, c: autoscale.manifold_length(g, w, c[:, :30, :30]), "multiple of 32.*30"),
        (lambda g, w, c: autoscale.manifold_length("4,3,2" + g[5:], w, c), "splits of stage 1"),
        (lambda g, w, c: autoscale.ntk_condition_number(c[:1], g, w), "at least two"),
        (lambda g, w, c: autoscale.ntk_condition_number(c * np.nan, g, w), "images must be finite"),
        (lambda g, w, c: autoscale.manifold_length("4,2", w, c), "genotype"),
        (lambda g, w, c: autoscale.manifold_length(g, w, c[:, :, :16]), "square.*(2, 32, 16, 3)"),
        (lambda g, w, c: autoscale.manifold_length(g, w, c[..., :1]), "three channels"),
        (lambda g, w, c: autoscale.curve_measures(g, w, c.astype("float64")), "circle of float64"),
        (lambda g, w, c: autoscale.ntk_condition_number(c[..., :16, :], g, w), "images of shape"),
        (lambda g, w, c: autoscale.ntk_condition_number(c.astype("uint8"), g, w), "of uint8"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call(*linear_case())


@pytest.mark.parametrize(
    ("genotype", "message"),
    [
        ("4,2,3|2,1,2|2,1,2|2,1,2|16,9", r"mlp/hidden/bias has the shape \(27,\).*\(18,\)"),
        ("4,2,2,2|2,1,2|2,1,2|2,1,2|16,9", "encoder_block_1/"),
        ("4,2,2|3,1,2|2,1,2|2,1,2|16,9", r"merging_1/projection/kernel has the shape \(81, 18\)"),
    ],
)
def test_weights_of_another_network_are_refused(genotype, message):
    _, weights, circle = linear_case()
    for measure in (
        lambda: autoscale.manifold_length(genotype, weights, circle),
        lambda: autoscale.curve_measures(genotype, weights, circle),
        lambda: autoscale.ntk_condition_number(circle, genotype, weights),
    ):
        with pytest.raises(ValueError, match=message):
            measure()


def test_weights_of_a_place_that_the_network_does_not_have_are_refused():
    genotype, weights, circle = linear_case()
    more = weights | {"encoder_block_4/mlp/hidden/bias": np.zeros(3, "float32")}
    with pytest.raises(ValueError, match="block_4/mlp/hidden/bias has the shape none"):
        autoscale.manifold_length(genotype, more, circle)
    del weights["embedding/bias"]
    with pytest.raises(ValueError, match="embedding/bias has the shape.*Received: none"):
        autoscale.manifold_length(genotype, weights, circle)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pos_emb": "absolute"}, "pos_emb=None to be measured"),
        ({"activation": "relu"}, "activation='gelu' to be measured.*'relu'"),
        ({"layer_norm_epsilon": 0.1}, "layer_norm_epsilon=1e-05 to be measured.*0.1"),
        ({"windows": "size", "pretrain_size": 64}, "windows of its image_size.*=64"),
    ],
)
def test_models_that_the_search_does_not_know_are_refused(arguments, message):
    model = models.AsViT(TINY, num_classes=None, image_size=32, **arguments)
    with pytest.raises(ValueError, match=message):
        autoscale.model_weights(model)


def test_models_that_calculate_the_same_are_taken():
    own = {"activation": keras.activations.gelu, "windows": "size", "pretrain_size": (32, 32)}
    model = models.AsViT(TINY, num_classes=None, image_size=32, **own)
    assert "embedding/kernel" in autoscale.model_weights(model)
