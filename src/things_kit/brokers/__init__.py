"""One file per broker, and `connect`, which finds the one a URL asks for."""
