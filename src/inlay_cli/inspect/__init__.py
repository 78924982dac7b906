"""inlay inspect: what a prompt's vectors are near to, and how much attention it gets.

`command.py` reads the options, `inputs.py` finds texts and words, `report.py` holds what was
measured, and `terminal.py`, `page.py` and `report.as_json` show it.
"""

from inlay_cli.inspect.command import register

__all__ = ["register"]
