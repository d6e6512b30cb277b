"""Each broker, configuration and logging, as modules of an application."""
