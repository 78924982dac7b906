"""The command line. `app.main` is what `inlay` runs; one file a command."""
