"""Inlay files: one safetensors file each, written whole or not at all."""
