"""Arithmetic that several methods are made of."""
