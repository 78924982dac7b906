"""AdapterFusion from a recipe: adapters first, then attention over them."""
