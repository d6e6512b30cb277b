"""Functions from Handle to Handle, one idea a file."""
