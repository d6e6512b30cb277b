"""A stand-in for Azure Service Bus, for tests: the part of it that the driver uses. It is not the service.

AMQP is spoken by Qpid Proton. `python -m things_kit.testing.servers.servicebus_emulator PORT ADMIN_PORT --journal FILE`.
"""
