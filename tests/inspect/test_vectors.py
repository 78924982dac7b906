"""What the pieces of an inlay hold."""

import pytest

import inlay
from inlay import LoRA
from inlay.errors import SpecError
from inlay.inspect import attention_shares, neighbours, require_inspectable
from tests import zoo
from tests.inspect.models import batch


def test_what_has_no_vectors_is_refused():
    handle = inlay.attach(zoo.fresh("llama"), LoRA(rank=1))
    with pytest.raises(SpecError, match=r"LoRA\(rank=1\)"):
        require_inspectable(handle)
    assert neighbours(handle) == []
    assert attention_shares(handle, [batch(handle.model, 5)]) == []
