"""pixvox segments pixels and voxels.

The flow, in the words of the folders:

    data -> backbone -> neck -> head -> loss | post-processing -> metrics -> visualization
"""

from pixvox.version import __version__

__all__ = ["__version__"]
