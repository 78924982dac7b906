"""Every message of an error that the library or the command line raises on purpose.

`messages.md` lists them, to be read as prose; `python -m tests.messages` writes it.
"""
