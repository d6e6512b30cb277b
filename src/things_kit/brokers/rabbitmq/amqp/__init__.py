"""A client of AMQP 0-9-1, as much of the protocol as the driver needs; what methods look like pika's `spec` knows."""
