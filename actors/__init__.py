"""The Ray actors: placement, names, health and metrics around the plain classes of simplear_rl."""
