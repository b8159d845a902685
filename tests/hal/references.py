"""Reference calculators for the campaign's tests, importable by worker processes: good, bad and ugly."""

import os
import time

import numpy as np
from ase.calculators.emt import EMT


class Raising(EMT):
    """Fails for cells with more copper than aluminium."""

    def calculate(self, atoms=None, *args, **kwargs):
        if np.mean(atoms.numbers == 29) > 0.5:
            raise RuntimeError("SCF not converged in 250 cycles")
        super().calculate(atoms, *args, **kwargs)


class NotANumber(EMT):
    """Energy NaN for cells with more copper than aluminium."""

    def calculate(self, atoms=None, *args, **kwargs):
        super().calculate(atoms, *args, **kwargs)
        if np.mean(atoms.numbers == 29) > 0.5:
            self.results["energy"] = self.results["free_energy"] = float("nan")


class Hanging(EMT):
    """Never returns for cells with more copper than aluminium."""

    def calculate(self, atoms=None, *args, **kwargs):
        if np.mean(atoms.numbers == 29) > 0.5:
            time.sleep(3600)
        super().calculate(atoms, *args, **kwargs)


class Dying(EMT):
    """Takes its process with it for cells with more copper than aluminium."""

    def calculate(self, atoms=None, *args, **kwargs):
        if np.mean(atoms.numbers == 29) > 0.5:
            os._exit(3)
        super().calculate(atoms, *args, **kwargs)


class Broken(EMT):
    """Always fails."""

    def calculate(self, *args, **kwargs):
        raise RuntimeError("licence expired")


class Moody(EMT):
    """Fails while there is a certain file."""

    def __init__(self, unless):
        super().__init__()
        self.unless = unless

    def calculate(self, *args, **kwargs):
        if os.path.exists(self.unless):
            raise RuntimeError("the cluster is down")
        super().calculate(*args, **kwargs)


class Choosy(EMT):
    """Once there is a certain file, every structure but the first that it sees then fails."""

    def __init__(self, unless):
        super().__init__()
        self.unless = unless

    def calculate(self, *args, **kwargs):
        if os.path.exists(self.unless):
            if os.path.exists(f"{self.unless}-seen"):
                raise RuntimeError("not again")
            open(f"{self.unless}-seen", "a").close()
        super().calculate(*args, **kwargs)


class Waiting(Moody):
    """Does not answer while there is a certain file; leaves another when it has."""

    def calculate(self, *args, **kwargs):
        while os.path.exists(self.unless):
            time.sleep(0.05)
        super().calculate(*args, **kwargs)
        open(f"{self.unless}-answered", "a").close()


class Shapeless(EMT):
    """Forces of the wrong shape."""

    def calculate(self, atoms=None, *args, **kwargs):
        super().calculate(atoms, *args, **kwargs)
        self.results["forces"] = self.results["forces"][:-1]
