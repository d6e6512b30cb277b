"""The contracts: what a message, a handler, a producer and a consumer are. No implementation."""
