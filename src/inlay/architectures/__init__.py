"""How the parts of a base are found: descriptions of families, and how a model is read."""
