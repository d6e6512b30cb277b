"""What follows from a topic's contract: schemas, documents, and what a change of it breaks."""
