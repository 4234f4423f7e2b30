"""Makes the builders beside this file importable from every room's tests, and checks tensor shapes at run time."""

from jaxtyping import install_import_hook

install_import_hook(["fathom.scoring", "fathom.depth.tree"], "beartype.beartype")
