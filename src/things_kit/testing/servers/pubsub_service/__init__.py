"""A stand-in for Google's Pub/Sub service, for tests: `python -m things_kit.testing.servers.pubsub_service PORT`.

It follows the service's documentation where a client can tell: names and limits are checked, messages of one ordering
key come in order and to one subscriber at a time, one that is given back brings those behind it with it, deadlines end,
streams keep to their flow control, and subscriptions with exactly-once delivery answer for each acknowledgement.
What it has is in a journal, so it survives being killed. It takes shorter ack deadlines than the service (1 second
instead of 10), so that tests can outwait them. SIGUSR1 has it break all connections.

A topic or subscription with the label `fault` answers with that status code (`fault: resource_exhausted`);
`fault: transient_ack` refuses each acknowledgement of an exactly-once subscription once, for now; `fault: stale` has the
first delivery of each message expire on its way.
"""
