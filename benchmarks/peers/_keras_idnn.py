"""Trains the integrable network in Keras in its own interpreter: DATA.npz EPOCHS BATCH WIDTH LAYERS; one JSON line.

Install it as ``pip install keras==3.15.1 jax`` in an environment of its own, whose interpreter is named with
``--peer-python`` in ensemble_training.py. The model, like the published one, is a stack of Dense layers whose
gradient with respect to its input is the output.
"""

import json
import os
import sys
import time

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import keras  # noqa: E402
import numpy as np  # noqa: E402

data = np.load(sys.argv[1])
epochs, batch, width, layers = map(int, sys.argv[2:])


class IDNN(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden = [keras.layers.Dense(width, activation="tanh") for _ in range(layers)]
        self.out = keras.layers.Dense(1)

    def energy(self, h):
        for layer in self.hidden:
            h = layer(h)
        return self.out(h)

    def call(self, inputs):
        features, jacobian = inputs
        if not self.out.built:
            self.energy(features)
        force = jax.grad(lambda h: self.energy(h).sum())(features)
        return jax.numpy.einsum("bf,bfd->bd", force, jacobian)


class Clock(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.times = [time.perf_counter()]

    def on_epoch_end(self, epoch, logs=None):
        self.times.append(time.perf_counter())


model, clock = IDNN(), Clock()
model.compile(optimizer=keras.optimizers.Adam(1e-3), loss="mse")
inputs = (data["features"].astype("float32"), data["jacobian"].astype("float32"))
history = model.fit(
    inputs,
    data["target"].astype("float32"),
    batch_size=batch,
    epochs=epochs,
    validation_split=0.1,
    verbose=0,
    callbacks=[clock],
)
spent = np.diff(clock.times)
print(
    json.dumps(
        {
            "first_epoch_s": spent[0],
            "epoch_s": float(np.median(spent[1:])),
            "loss": history.history["loss"][-1],
            "keras": keras.__version__,
            "jax": jax.__version__,
        }
    )
)
