"""Makes the builders beside this file importable from every room's tests, and checks tensor shapes at run time."""

from hypothesis import settings
from jaxtyping import install_import_hook

install_import_hook(["fathom.scoring", "fathom.depth.tree"], "beartype.beartype")

# The first example pays for imports, and machines are shared: time says nothing about a law.
settings.register_profile("fathom", deadline=None)
settings.load_profile("fathom")
