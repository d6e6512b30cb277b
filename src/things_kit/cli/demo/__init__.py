"""The demo: an audit of the installed packages that survives the death of one of its workers."""
