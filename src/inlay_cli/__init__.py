"""The command line. `app.main` is what `inlay` runs; one file a command.

It is a package of its own next to the library, which it imports only when a command runs: importing
anything of `inlay` imports torch, and neither help nor completion should wait for that.
"""
