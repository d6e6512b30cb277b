"""The portable engine: order, concurrency, retries, dead letters and draining, once for all brokers."""
