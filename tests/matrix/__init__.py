"""The suite against what users run today: `python -m tests.matrix [ROW ...]`, which writes docs/compatibility.md."""
