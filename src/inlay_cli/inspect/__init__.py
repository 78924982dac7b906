"""inlay inspect: what a prompt is near to, the attention it gets, and what pieces decide.

`command.py` reads the options, `inputs.py` finds texts and words, `report.py` holds what was
measured, and `terminal.py`, `page.py` and `report.as_json` show it. `readings.py` puts what pieces
decide into maps, and `heat.py` draws maps.
"""

from inlay_cli.inspect.command import register

__all__ = ["register"]
