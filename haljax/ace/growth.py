"""A basis of a size that the data choose: which bases there are to choose from, from small to large."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, overload

from haljax.ace.basis import ACEBasis

FIRST_CUTOFF, FIRST_ORDER = 5.0, 2
FIRST_DEGREES = (6, 4, 3, 2)  # the first of them that the budget allows
WIDER = 1.15  # factor between one cutoff and the next
LARGEST_ORDER, LARGEST_SIZE = 4, 1500  # number of functions: beyond it ask for a degree


@dataclass(frozen=True)
class GrowingBasis:
    """A basis whose cutoff, correlation order or degree follows from the data. Made by `ace_basis` with "auto".

    Attributes
    ----------
    elements : chemical symbols.
    cutoff : Å. order : correlation order. max_degree : bound on the sum of n + 1.5 l. None: chosen by the data.
    budget : longest time for energy and forces, µs per atom on the machine that fits; None: no limit.
    """

    elements: tuple[str, ...]
    cutoff: float | None = None
    order: int | None = None
    max_degree: int | None = None
    budget: float | None = None

    def __post_init__(self) -> None:
        if self.budget is not None and not 0 < self.budget < float("inf"):
            raise ValueError(f"budget must be a positive time in µs per atom, not {self.budget}")
        self.first()  # refuses bad elements, cutoffs, orders and degrees

    def words(self) -> str:
        """ "order 3, degree chosen by the labels, cutoff 5 Å"."""

        def shown(value: float | None) -> str:
            return "chosen by the labels" if value is None else f"{value:g}"

        unit = "" if self.cutoff is None else " Å"
        limit = "" if self.budget is None else f", at most {self.budget:g} µs per atom"
        return f"order {shown(self.order)}, degree {shown(self.max_degree)}, cutoff {shown(self.cutoff)}{unit}{limit}"

    def first(self) -> tuple[ACEBasis, ...]:
        """Where the search begins: the first of these that the budget allows."""
        cutoff = FIRST_CUTOFF if self.cutoff is None else self.cutoff
        order = FIRST_ORDER if self.order is None else self.order
        degrees = FIRST_DEGREES if self.max_degree is None else (self.max_degree,)
        return tuple(ACEBasis(self.elements, cutoff, order, degree) for degree in degrees)

    def neighbours(self, basis: ACEBasis) -> Iterator[ACEBasis]:
        """What to try beside a basis, the most promising first: higher degrees, one order more, other cutoffs."""
        cutoff, order, degree = basis.cutoff, basis.order, basis.max_degree
        if self.max_degree is None:
            yield from self._allowed(basis, (cutoff, order, degree + 2), (cutoff, order, degree + 1))
        if self.order is None and order < LARGEST_ORDER:
            yield from self._allowed(basis, (cutoff, order + 1, self._degree_of_like_size(basis)))
        if self.cutoff is None:
            other = round(cutoff * WIDER, 2), round(cutoff / WIDER, 2)
            yield from self._allowed(basis, *((radius, order, degree) for radius in other))

    def _allowed(self, basis: ACEBasis, *steps: tuple[float, int, int]) -> Iterator[ACEBasis]:
        for step in steps:
            found = ACEBasis(self.elements, *step)
            if len(found) <= max(LARGEST_SIZE, len(basis)):
                yield found

    def _degree_of_like_size(self, basis: ACEBasis) -> int:
        """The degree at one order more: the largest with at most half as many functions again."""
        if self.max_degree is not None:
            return basis.max_degree
        found = FIRST_DEGREES[-1]
        while len(ACEBasis(self.elements, basis.cutoff, basis.order + 1, found + 1)) <= 1.5 * len(basis):
            found += 1
        return found


@overload
def ace_basis(elements: Sequence[str], cutoff: float = 5.0, order: int = 3, max_degree: int = 10) -> ACEBasis: ...


@overload
def ace_basis(
    elements: Sequence[str],
    cutoff: float | Literal["auto"] = 5.0,
    order: int | Literal["auto"] = 3,
    max_degree: int | Literal["auto"] = 10,
    budget: float | None = None,
) -> ACEBasis | GrowingBasis: ...


def ace_basis(elements, cutoff=5.0, order=3, max_degree=10, budget=None):
    """A linear ACE basis with the sizes and conventions of ACE1x's defaults.

    Parameters
    ----------
    elements : chemical symbols; their order fixes the order of the functions.
    cutoff : radius of an environment, Å.
    order : correlation order nu (body order minus one); many-body terms of order 2 ... nu.
    max_degree : bound on sum_t (n_t + 1.5 l_t), and the number of radial functions of a pair term.
    budget : longest time for energy and forces, µs per atom, of a basis that the data choose.

    Any of cutoff, order and max_degree may be "auto": then `fit` chooses it, by leave-one-out errors, and the result
    is a `GrowingBasis`; ``model.basis`` has what was chosen.

    Raises
    ------
    ValueError : an unknown or repeated element, a cutoff, order, degree or budget out of range, a budget without
        anything to choose.
    """
    given = {"cutoff": cutoff, "order": order, "max_degree": max_degree}
    for name, value in given.items():
        if isinstance(value, str) and value != "auto":
            raise ValueError(f"{name} must be a number or 'auto', not {value!r}")
    chosen = {name: None if value == "auto" else value for name, value in given.items()}
    if None not in chosen.values():
        if budget is not None:
            raise ValueError("a budget chooses among bases: give max_degree='auto', order='auto' or cutoff='auto' too")
        return ACEBasis(tuple(elements), float(cutoff), int(order), int(max_degree))
    return GrowingBasis(
        tuple(elements),
        None if chosen["cutoff"] is None else float(cutoff),
        None if chosen["order"] is None else int(order),
        None if chosen["max_degree"] is None else int(max_degree),
        budget,
    )
