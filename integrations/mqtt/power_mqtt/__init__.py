"""power_manager and MQTT: a file's states and events to a broker, and a broker's sensors into a file."""
