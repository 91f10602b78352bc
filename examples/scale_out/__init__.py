"""Past one machine: readings in an MQTT broker, and servers that share their broadcasts through Redis."""
