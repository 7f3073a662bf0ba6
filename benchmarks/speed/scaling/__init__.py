"""How training scales over processes: images a second at one effective batch, and what crosses the network."""
