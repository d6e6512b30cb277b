"""Google Pub/Sub, through the official client: its asynchronous gRPC API, without threads."""
