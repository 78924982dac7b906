"""What the papers claim, measured on small models: `python -m bench.claims`.

`claim.py` says what a claim is; `papers/` has one file a claim, found by its name; `experiment.py`
trains and scores; `results.py` reads and writes `results/`, which holds what was measured whether
the claim held or not.
"""
