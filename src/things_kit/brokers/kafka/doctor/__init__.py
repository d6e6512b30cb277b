"""What in a Kafka cluster, a topic's settings or a group's state would lose messages or hold them up."""
