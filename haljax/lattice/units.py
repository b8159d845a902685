"""Constants of the lattice half, whose energies are eV per primitive cell."""

KB = 8.617333262e-05  # eV/K, Boltzmann's constant (CODATA 2018)
