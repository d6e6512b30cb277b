"""`sqs://`: see `driver`."""
