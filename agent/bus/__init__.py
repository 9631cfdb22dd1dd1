"""The broker: `mqtt` is the one import of aiomqtt, `embedded` runs a NATS server of our own for the demo."""
