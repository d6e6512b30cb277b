"""A client of AMQP 1.0, as much of the protocol as Service Bus needs; it knows nothing of Service Bus."""
