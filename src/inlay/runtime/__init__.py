"""Everything that acts during a forward pass. README.md beside this file tells how one goes.

Importing the package registers the port of every kind of piece.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__, __name__ + "."):
    import_module(_module.name)
