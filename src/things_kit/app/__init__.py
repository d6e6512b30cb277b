"""An application kit that knows nothing of messages: modules, injection, lifecycle, configuration, logging."""
