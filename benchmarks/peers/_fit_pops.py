"""Fit POPSRegression to the arrays X, y of a npz file and predict rows, with stds: run where popsregression is.

python _fit_pops.py INPUT.npz OUTPUT.npz
"""

import sys

import numpy as np
from popsregression import POPSRegression

np.random.seed(0)  # noqa: NPY002  POPSRegression draws from the global generator
with np.load(sys.argv[1]) as data:
    model = POPSRegression().fit(data["X"], data["y"])
    mean, std = model.predict(data["rows"], return_std=True)
np.savez(sys.argv[2], mean=mean, std=std)
