"""What methods with low-rank factors have in common."""

from __future__ import annotations

from inlay.core.method import Method
from inlay.core.site import Site
from inlay.errors import SpecError


def check_rank(method: Method, site: Site, rank: int) -> None:
    """Raise SpecError where a rank is larger than that of the matrix at this site can be."""
    largest = min(site.d_in, site.d_out)
    if rank > largest:
        raise SpecError(
            f"{type(method).__name__}: rank {rank} is larger than the matrix at {site.name} "
            f"({site.d_out} × {site.d_in}); use at most {largest}"
        )
