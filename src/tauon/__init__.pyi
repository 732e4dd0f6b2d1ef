"""What `import tauon` offers, for type checkers: names are imported when they are used (see `__init__.py`)."""

from tauon.api import Run as Run
from tauon.api import open_run as open_run
from tauon.api import run as run
from tauon.recipe import Recipe as Recipe
from tauon.recipe import load_recipe as load_recipe

__version__: str
__all__ = ["Recipe", "Run", "__version__", "load_recipe", "open_run", "run"]
