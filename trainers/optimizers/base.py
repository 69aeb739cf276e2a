"""What the optimizers here share. All that leans on private parts of Keras 3.15 is in this file."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_vmoe.ops import on_mesh
from keras_vmoe.trainers.optimizers.schedules import Schedule
from keras_vmoe.trainers.optimizers.variable_rules import Decay, VariableRules

# Elements from which on a variable's update is worth a compilation, of some tenths of a second for
# each shape.
COMPILED_SIZE = 2**18
# In bfloat16 an Adam kernel's 0.999 is 1.
_EXACT_ENOUGH = (tf.float32, tf.float64)


class DecoupledOptimizer(keras.optimizers.Optimizer):
    """An optimizer of the form: clip the gradients, apply a rule, decay, times the learning rate.

    A subclass gives the rule as a pure function, `rule`, and what it keeps: `build`, `slots`,
    `get_config`. From Keras' own it differs in six things:

    - weight decay goes by regexes, with a number for each;
    - schedules count updates: over an accumulation the learning rate stands still;
    - the norm that is clipped is that of the whole update: of all replicas and all accumulated
      batches together. Keras clips what each replica holds;
    - the average of the weights moves once an update, not once a batch;
    - `freeze`;
    - on CPUs a variable is updated where it lies, by TensorFlow's own kernel of the rule if there
      is one (`update_in_place`): an update is little but memory traffic. Where there is none, XLA
      compiles the rule of each large variable.

    It runs on TensorFlow, with its replicas, and on JAX.

    Args:
        learning_rate: a number or a schedule over updates.
        weight_decay: a number, or pairs `(regex, number)` over the variables' paths; see
            `VariableRules`. It is multiplied by the current learning rate.
        freeze: regexes of variables that are never changed. Their gradients are left out of the
            norm too.
        global_clipnorm: largest norm of all gradients together; None: no clipping.
        gradient_accumulation_steps: batches of one update, which takes the mean of their
            gradients; None: 1.
        ema_momentum: keep an average of the weights with this momentum; None: no average.
        name: of the optimizer.

    Raises:
        ValueError: for a value out of range; from `build`: for a regex that matches no variable.

    Reference:
        Loshchilov and Hutter, Decoupled weight decay regularization, 2019, algorithm 2.

    Example:
        >>> class SignDescent(DecoupledOptimizer):
        ...     def rule(self, gradient, slots, learning_rate, step, kind):
        ...         return learning_rate * tf.sign(gradient), slots
        >>> weight = keras.Variable([1.0, -1.0])
        >>> SignDescent(0.5, weight_decay=0.1).apply([tf.constant([3.0, 4.0])], [weight])
        >>> [round(float(x), 2) for x in weight.numpy()]
        [0.45, -1.45]
    """

    def __init__(
        self,
        learning_rate: float | Schedule,
        weight_decay: Decay = None,
        freeze: Sequence[str] = (),
        global_clipnorm: float | None = None,
        gradient_accumulation_steps: int | None = None,
        ema_momentum: float | None = None,
        name: str | None = None,
    ) -> None:
        rules = VariableRules(weight_decay, freeze)
        if global_clipnorm is not None and not global_clipnorm > 0:
            raise ValueError(f"global_clipnorm={global_clipnorm!r} must be positive, or None")
        steps = gradient_accumulation_steps
        if steps is not None and (not isinstance(steps, int) or steps < 1):
            raise ValueError(f"gradient_accumulation_steps={steps!r} must be a whole number >= 1")
        # Without its weight_decay: Keras would take the same from all variables.
        super().__init__(
            learning_rate=learning_rate,
            global_clipnorm=global_clipnorm,
            use_ema=ema_momentum is not None,
            ema_momentum=0.99 if ema_momentum is None else ema_momentum,
            gradient_accumulation_steps=None if steps == 1 else steps,
            name=name,
        )
        self.rules = rules

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Makes the averages and accumulators, and looks up which rule is whose.

        Args:
            variables: the model's trainable variables.
        """
        paths = [variable.path for variable in variables]
        self._plan = _Plan(self.rules.decay_rates(paths), self.rules.frozen(paths))
        super().build(variables)
        self._compiled_values = (
            tf.function(self._new_values, jit_compile=True, autograph=False)
            if _on_tensorflow()
            else self._new_values
        )

    def slots(self, index: int) -> list[keras.Variable]:
        """What the rule keeps of a variable.

        Args:
            index: the place of the variable among those that `build` was given.
        """
        return []

    def kind(self, index: int) -> Hashable:
        """What else, beside shapes, the rule of a variable depends on.

        Args:
            index: the place of the variable among those that `build` was given.
        """
        return None

    def rule(
        self,
        gradient: Any,
        slots: Sequence[Any],
        learning_rate: Any,
        step: Any,
        kind: Hashable,
    ) -> tuple[Any, Sequence[Any]]:
        """The update of a variable, a pure function.

        Args:
            gradient: clipped, in the variable's dtype.
            slots: the values of `slots`.
            learning_rate: a scalar, float32.
            step: a scalar, float32: which update it is, from 1.
            kind: of the variable.

        Returns:
            What is to be subtracted from the variable, and the new values of the slots.
        """
        raise NotImplementedError(f"{type(self).__name__} has no rule")

    def update_in_place(
        self,
        variable: tf.Variable,
        gradient: tf.Tensor,
        slots: Sequence[tf.Variable],
        learning_rate: tf.Tensor,
        step: tf.Tensor,
    ) -> tf.Operation | None:
        """The same update by a TensorFlow kernel that changes a variable and its slots in place.

        It reads and writes each number once, and needs no memory beside them. Only CPUs ask for it.

        Args:
            variable: what is changed.
            gradient: clipped, in the variable's dtype.
            slots: the variables of `slots`; changed as well.
            learning_rate: a scalar, float32.
            step: a scalar, float32: which update it is, from 1.

        Returns:
            The operation. Of an optimizer that leaves this method alone, `has_kernel` is false.
        """
        raise NotImplementedError(f"{type(self).__name__} has no kernel of its own")

    @property
    def has_kernel(self) -> bool:
        """Whether `update_in_place` is there, and no subclass has another `rule` since."""
        rule, kernel = (
            next(owner for owner in type(self).__mro__ if name in vars(owner))
            for name in ("rule", "update_in_place")
        )
        return kernel is not DecoupledOptimizer and issubclass(kernel, rule)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        return {
            "name": self.name,
            "learning_rate": config["learning_rate"],
            "weight_decay": self.rules.weight_decay,
            "freeze": self.rules.freeze,
            "global_clipnorm": self.global_clipnorm,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
            "ema_momentum": self.ema_momentum if self.use_ema else None,
        }

    # Keras calls these two; the rest of the file is theirs.

    def _get_current_learning_rate(self) -> Any:
        if isinstance(self._learning_rate, Schedule):
            return ops.maximum(self._learning_rate(self.iterations), 0.0)
        return super()._get_current_learning_rate()

    def _backend_apply_gradients(
        self, grads: Sequence[Any], trainable_variables: Sequence[keras.Variable]
    ) -> None:
        pairs = [
            (_dense(gradient), variable)
            for gradient, variable in zip(grads, trainable_variables, strict=True)
            if not self._plan.frozen[self._get_variable_index(variable)]
        ]
        if not pairs:
            return
        if not _on_tensorflow():
            gradients, variables = zip(*pairs, strict=True)
            self._apply_purely(self._accumulated(gradients, variables), variables)
            return
        pairs = [(gradient, variable.value) for gradient, variable in pairs]
        gradients, variables = zip(*self._all_reduce_sum_gradients(pairs), strict=True)
        gradients = self._accumulated(gradients, variables)
        tf.__internal__.distribute.interim.maybe_merge_call(
            self._update_or_keep,
            self._distribution_strategy,
            list(gradients),
            list(variables),
            self._scale(gradients),
            self.learning_rate,
        )

    def _apply_purely(self, gradients: Sequence[Any], variables: Sequence[keras.Variable]) -> None:
        # A step is a pure function, and cannot leave an update out: it takes it back.
        state = [*self._trainable_variables, *self.variables]
        before = [variable.value for variable in state]
        scale, learning_rate = self._scale(gradients), self.learning_rate
        for gradient, variable in zip(gradients, variables, strict=True):
            self._update_one(variable, gradient, scale, learning_rate)
        if self.use_ema:
            for variable in self._trainable_variables:
                self._average_one(variable)
        if not (steps := self.gradient_accumulation_steps):
            return
        is_last = ops.equal((self._iterations.value + 1) % steps, 0)
        for variable, value in zip(state, before, strict=True):
            variable.assign(ops.where(is_last, variable.value, value))
        for gradient, variable in zip(gradients, variables, strict=True):
            kept = ops.where(is_last, ops.zeros_like(gradient), gradient)
            self._accumulator(variable).assign(kept)

    def _accumulated(self, gradients: Sequence[Any], variables: Sequence[Any]) -> Sequence[Any]:
        if not self.gradient_accumulation_steps:
            return gradients
        sums = [self._accumulator(variable).value for variable in variables]
        return [g + ops.cast(a, g.dtype) for g, a in zip(gradients, sums, strict=True)]

    def _scale(self, gradients: Sequence[Any]) -> Any:
        # What the sum of the gradients is multiplied by: one over their number, and clipping.
        share = 1.0 / (self.gradient_accumulation_steps or 1)
        if self.global_clipnorm is None:
            return None if share == 1.0 else ops.convert_to_tensor(share, "float32")
        norm = share * ops.sqrt(2.0 * _half_squares(gradients))
        scale = share * ops.minimum(self.global_clipnorm / norm, 1.0)
        # A norm that is infinite must be seen: it would make an update of zeros.
        return ops.where(ops.isfinite(norm), scale, float("nan"))

    def _update_or_keep(
        self,
        strategy: tf.distribute.Strategy,
        gradients: Sequence[tf.Tensor],
        variables: Sequence[tf.Variable],
        scale: tf.Tensor | None,
        learning_rate: tf.Tensor,
    ) -> None:
        def on_each_replica(function: Any, variable: tf.Variable, *args: Any) -> Any:
            return strategy.extended.update(variable, function, args=args, group=False)

        def update() -> None:
            previous = []
            for gradient, variable in zip(gradients, variables, strict=True):
                args = (variable, gradient, scale, learning_rate)
                # One at a time: each takes all cores, and scaled gradients or new values lie beside
                # the old ones. On several replicas there is nothing to wait for.
                with tf.control_dependencies(previous):
                    done = on_each_replica(self._update_one, *args)
                previous = _waitable(done) or previous
            if self.use_ema:
                for variable in self._trainable_variables:
                    on_each_replica(self._average_one, variable.value)

        def update_and_empty() -> None:
            update()
            for variable in variables:
                accumulator = self._accumulator(variable).value
                on_each_replica(lambda a: a.assign(tf.zeros_like(a)), accumulator)

        def keep() -> None:
            for gradient, variable in zip(gradients, variables, strict=True):
                accumulator = self._accumulator(variable).value
                on_each_replica(lambda a, g: a.assign(tf.cast(g, a.dtype)), accumulator, gradient)

        steps = self.gradient_accumulation_steps
        if not steps:
            update()
            return
        is_last = tf.equal((self._iterations.value + 1) % steps, 0)
        tf.cond(is_last, update_and_empty, keep)

    def _update_one(
        self,
        variable: Any,
        gradient: Any,
        scale: Any,
        learning_rate: Any,
    ) -> Any:
        """Returns what the next update waits for, if that is worth it."""
        index = self._get_variable_index(variable)
        slots, decay = self.slots(index), self._plan.decay_rates[index]
        learning_rate = ops.cast(learning_rate, "float32")
        step = ops.cast(self.iterations + 1, "float32")
        alone = self._alone_on_cpu(variable)
        if alone and self.has_kernel and variable.dtype in _EXACT_ENOUGH:
            if decay:
                variable.assign_sub(variable * ops.cast(learning_rate * decay, variable.dtype))
            gradient = ops.cast(_scaled(gradient, scale), variable.dtype)
            own = [slot.value for slot in slots]
            return self.update_in_place(variable, gradient, own, learning_rate, step)
        compiles = alone and math.prod(variable.shape) >= COMPILED_SIZE
        new_values = self._compiled_values if compiles else self._new_values
        value, new_slots = new_values(
            gradient,
            _read(variable),
            [_read(slot) for slot in slots],
            scale,
            learning_rate,
            step,
            decay,
            self.kind(index),
        )
        self.assign(variable, value)
        for slot, new in zip(slots, new_slots, strict=True):
            self.assign(slot, new)
        return value if compiles else None

    def _new_values(
        self,
        gradient: Any,
        value: Any,
        slots: Sequence[Any],
        scale: Any,
        learning_rate: Any,
        step: Any,
        decay: float,
        kind: Hashable,
    ) -> tuple[Any, Sequence[Any]]:
        dtype = value.dtype
        gradient = ops.cast(_scaled(gradient, scale), dtype)
        update, slots = self.rule(gradient, slots, learning_rate, step, kind)
        if decay:
            value = value - value * ops.cast(learning_rate * decay, dtype)
        return value - update, slots

    def _alone_on_cpu(self, variable: Any) -> bool:
        # XLA's own threads and those of replicas on one CPU wait for each other.
        return (
            _on_tensorflow()
            and not on_mesh()
            and self._distribution_strategy.num_replicas_in_sync == 1
            and "CPU" in variable.device
        )

    def _average_one(self, variable: Any) -> None:
        average = self._model_variables_moving_average[self._get_variable_index(variable)]
        if average is None:
            return
        # The first update's weights are the first average.
        momentum = ops.where(ops.equal(self.iterations, 0), 0.0, self.ema_momentum)
        share = ops.cast(1.0 - momentum, variable.dtype)
        self.assign_add(average, share * (variable - average.value))

    def _accumulator(self, variable: Any) -> keras.Variable:
        return self._accumulated_gradients[self._get_variable_index(variable)]


def _on_tensorflow() -> bool:
    return keras.backend.backend() == "tensorflow"


def _read(variable: Any) -> Any:
    """The value of a variable, of this replica where there are several."""
    value = variable.value if isinstance(variable, keras.Variable) else variable
    return tf.convert_to_tensor(value) if _on_tensorflow() else value


def _waitable(done: Any) -> list[Any]:
    """What an update in a strategy gave, a tuple or a value, as control inputs."""
    # In eager mode an operation is None.
    kinds = (tf.Tensor, tf.Operation)
    return [each for each in tf.nest.flatten(done) if isinstance(each, kinds)]


def _scaled(gradient: Any, scale: Any) -> Any:
    return gradient if scale is None else gradient * ops.cast(scale, gradient.dtype)


def _dense(gradient: Any) -> Any:
    # Of an embedding TensorFlow gives rows and their indices, which Keras would leave so.
    return tf.convert_to_tensor(gradient) if _on_tensorflow() else gradient


def _half_squares(gradients: Sequence[Any]) -> Any:
    """Half the sum of all squares."""
    gradients = [ops.cast(gradient, "float32") for gradient in gradients]
    if _on_tensorflow():
        return tf.add_n([tf.nn.l2_loss(gradient) for gradient in gradients])
    return 0.5 * sum(ops.sum(ops.square(gradient)) for gradient in gradients)


class _Plan:
    """The rules' answer for each variable; a class, since Keras would wrap a tuple to track it."""

    def __init__(self, decay_rates: tuple[float, ...], frozen: tuple[bool, ...]) -> None:
        self.decay_rates, self.frozen = decay_rates, frozen


def learning_rate_at(optimizer: keras.optimizers.Optimizer, step: int) -> float:
    """The learning rate of an optimizer after a number of batches, whatever it has taken so far.

    Args:
        optimizer: any optimizer of Keras.
        step: batches; with gradient accumulation several make one update.

    Example:
        >>> optimizer = keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(1.0, 10))
        >>> round(learning_rate_at(optimizer, 5), 6)
        0.5
    """
    rate = optimizer._learning_rate
    if isinstance(rate, Schedule):
        rate = rate(step // (optimizer.gradient_accumulation_steps or 1))
    return max(float(ops.convert_to_numpy(rate)), 0.0)
