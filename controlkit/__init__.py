"""controlkit: make control maps, train ControlNets on them, generate under their control, and see whether they obey.

Importing this package loads nothing heavy; each room imports what it needs when it is used. The tree is described in
ARCHITECTURE.md.
"""

__version__ = "0.1.0"
