"""The three ways into a base: tap (a module's output), keys (its attention), slots (its input)."""
