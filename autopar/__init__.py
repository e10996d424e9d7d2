"""autopar: profile, plan, run and explain distributed PyTorch training."""

from autopar.core.version import __version__

__all__ = ["__version__"]
