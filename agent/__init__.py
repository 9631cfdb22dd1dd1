"""podhook: backup hooks that run beside the database, triggered over MQTT."""

__version__ = "0.1.0"
