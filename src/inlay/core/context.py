"""PassContext: what a piece may know of the forward pass in which it acts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, EncoderDecoderCache

from inlay.errors import RowsError, SpecError

LAYERS = "inlay_layers"
"""The attribute under which a cache keeps the numbers of the layers that pieces added to it."""


class KeptLayer(DynamicLayer):
    """What pieces keep in a cache. It grows, and does not change what kind of cache that is.

    transformers takes a cache for a static one, whose unused places must be masked, while all of
    its layers say that they can be compiled.
    """

    is_compileable = True


@dataclass(frozen=True)
class PassContext:
    """The forward pass under way, as the rows that a piece serves see it.

    mask:   `[B, S]`, 1 where a position holds text or a prompt, 0 where it is padding. The last T
            columns are the positions of x; S - T of them are in the cache already. None where the
            pass has no padding mask, and where no piece of the pass declares
            `relates_positions = True`.
    source_mask: in a decoder that reads an encoder, the padding mask of the encoder's states; at
            `cross.k` and `cross.v`, whose x they are, `mask` is this one.
    continues: whether the pass goes on with texts that are in the cache already; not in training.
    cache:  the cache of the pass, None without one. Pieces write to it with `append_to_cache`.
    seed:   what random draws start from, in a compiled pass a tensor `[]` on the CPU; None unless
            a piece of the pass declares `draws = True`.
    batch:  how many rows the pass has; row_numbers `[b]`: which of them x holds, None for all.
    side_states: what a `SideEncoder` computed of the rows' source texts, `[B, S', W]`, for the side
            network of the decoder; None elsewhere, and where the states were computed without it.

    The same context is used again when a checkpointed block is recomputed in backward.
    """

    mask: Tensor | None = None
    source_mask: Tensor | None = None
    continues: bool = False
    cache: Cache | None = None
    seed: int | Tensor | None = None
    batch: int = 0
    row_numbers: Tensor | None = None
    side_states: Tensor | None = None

    def generator(self, *key: object) -> torch.Generator:
        """A CPU random generator for the draw called `key`.

        Equal keys give equal draws within one pass: in the block and in its recomputation, and
        for every group of rows. Put the site's name into the key for draws that differ from layer
        to layer. A compiled pass has no generators; it takes `draw`.

        Raises SpecError where the piece does not declare `draws = True`.
        """
        return _generator(int(self._seed()), _words(key))

    def draw(self, high: int, count: int, *key: object) -> Tensor:
        """Whole numbers from 0 to before `high`, `[count]`, on the CPU, for the draw called `key`.

        They are those of `generator`; a compiled pass draws them too, without knowing them (see
        `blocks.draws`). Raises SpecError where the piece does not declare `draws = True`.
        """
        seed = self._seed()
        if isinstance(seed, int):
            return torch.randint(high, (count,), generator=_generator(seed, _words(key)))
        drawn: Tensor = torch.ops.inlay.draw(seed, _words(key), high, count)
        return drawn

    def _seed(self) -> int | Tensor:
        if self.seed is None:
            raise SpecError("a piece that draws random numbers must declare draws = True")
        return self.seed

    def append_to_cache(
        self, owner: object, keys: Tensor, values: Tensor, number: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Keep tensors in the cache beside the base's own, and return all that were kept.

        owner: the piece, which sees nothing but its own. keys, values: each `[b, H, T, K]`, to be
        put after those of earlier passes; T may be 0. number: for pieces that keep several.

        Beams reorder what is kept like the rest of the cache. Without a cache the arguments are
        returned. Raises RowsError where the cache was begun without this piece.
        """
        if self.cache is None:
            return keys, values
        cache = self.cache
        layers = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
        places: dict[tuple[int, int], int] = vars(cache).setdefault(LAYERS, {})
        place = places.get((id(owner), number))
        if place is None:
            if self.continues:
                raise RowsError(
                    "this cache was begun without the inlay of these rows; begin generation again "
                    "with the rows it shall use, and an empty cache in the first pass"
                )
            place = places[id(owner), number] = len(layers.layers)
            layers.layers.append(KeptLayer())
        layer = layers.layers[place]
        assert isinstance(layer, KeptLayer)
        kept = layer.update(self._spread(keys), self._spread(values))
        if self.row_numbers is None:
            return kept
        return kept[0][self.row_numbers], kept[1][self.row_numbers]

    def _spread(self, rows: Tensor) -> Tensor:
        """Rows of x as rows of the batch, the others zero: `[b, …] -> [B, …]`."""
        if self.row_numbers is None:
            return rows
        whole = rows.new_zeros(self.batch, *rows.shape[1:])
        return whole.index_copy(0, self.row_numbers, rows)

    def of(self, x: Tensor) -> PassContext:
        """The context for a module that reads x `[B', …]`: without rows where B' is not B."""
        if len(x) == self.batch:
            return self
        return replace(
            self, mask=None, source_mask=None, cache=None, side_states=None, batch=len(x)
        )

    def of_source(self) -> PassContext:
        """The context for a module that reads the states of the encoder."""
        return replace(self, mask=self.source_mask)

    def rows(self, start: int, stop: int, device: torch.device) -> PassContext:
        """The context of the rows from `start` to before `stop` of an x on this device."""
        depends = (self.mask, self.source_mask, self.cache, self.side_states)
        if all(part is None for part in depends):
            return self
        return self.select(torch.arange(start, stop, device=device))

    def select(self, index: Tensor) -> PassContext:
        """The context of the rows with these indices, `[b]`."""
        tensors = (self.mask, self.source_mask, self.side_states)
        mask, source, side = (None if t is None else t[index.to(t.device)] for t in tensors)
        return replace(self, mask=mask, source_mask=source, side_states=side, row_numbers=index)


def _words(key: tuple[object, ...]) -> str:
    return ", ".join(repr(part) for part in key)


def _generator(seed: int, words: str) -> torch.Generator:
    digest = hashlib.sha256(f"({seed}, {words})".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _draw(seed: Tensor, words: str, high: int, count: int) -> Tensor:
    return torch.randint(high, (count,), generator=_generator(int(seed), words))


torch.library.custom_op(
    "inlay::draw",
    _draw,
    mutates_args=(),
    schema="(Tensor seed, str words, int high, int count) -> Tensor",
)
torch.library.register_fake("inlay::draw", lambda seed, words, high, count: seed.new_empty(count))
