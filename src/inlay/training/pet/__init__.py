"""Pattern-exploiting training (PET and iPET)."""
