"""How many machines a service needs: its requests, a server simulated step by step, sizes, sweeps."""
