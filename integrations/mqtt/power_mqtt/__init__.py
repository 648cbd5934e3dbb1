"""A power_manager file and MQTT: its states and events to a broker, MQTT sensors into the file."""
