"""The command line. `app.main` is what `inlay` runs; one file a command.

It stands beside the library, not in it, and imports it only when a command runs: importing anything
of `inlay` imports torch, and help and completion should not wait for that.
"""
