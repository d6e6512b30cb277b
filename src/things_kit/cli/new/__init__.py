"""`things-kit new`: a small project to begin with."""
