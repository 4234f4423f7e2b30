"""Makes the builders beside this file importable from every room's tests, and checks tensor shapes at run time."""

import os

from hypothesis import settings
from jaxtyping import install_import_hook

install_import_hook(["fathom.scoring", "fathom.depth.nodes", "fathom.depth.tree"], "beartype.beartype")

# The first example pays for imports, and machines are shared: time says nothing about a law.
# Where CI is set, every run draws the same examples: a red one is then its change's. Elsewhere they are new ones.
settings.register_profile("fathom", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("fathom")
