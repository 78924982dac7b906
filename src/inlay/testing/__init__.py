"""Testing a method, in this package or in another: every law, on a tiny model of every family.

In the tests of a package that adds a method (see docs/new-method.md):

    import pytest
    from inlay.testing import FAMILIES, check_method, laws_hold
    from my_package import MyMethod

    def test_everything():
        check_method(MyMethod)                      # its examples, on every family

    @pytest.mark.parametrize("family", FAMILIES)    # or one test a family
    def test_laws(family):
        verdict = laws_hold(MyMethod(rank=2), family)
        assert verdict.refusal is not None or "merge" in verdict.spoke

No model is downloaded: they have some ten thousand random parameters each.
"""

from inlay.testing.models import FAMILIES, shared_tiny_model, tiny_model
from inlay.testing.verdicts import Verdict, check_method, laws_hold

__all__ = [
    "FAMILIES",
    "Verdict",
    "check_method",
    "laws_hold",
    "shared_tiny_model",
    "tiny_model",
]
