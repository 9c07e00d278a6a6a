"""The engines behind the server: their clients, processes and wires."""
