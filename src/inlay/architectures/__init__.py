"""What is where in a base: the families as data, and how a model is read."""
