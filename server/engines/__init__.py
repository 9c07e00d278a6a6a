"""The engines behind the server: their clients, processes, wires and supervisors."""
