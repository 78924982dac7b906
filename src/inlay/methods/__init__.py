"""One file a method. A file in this folder is all it takes: importing it registers the method."""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__, __name__ + "."):
    import_module(_module.name)
